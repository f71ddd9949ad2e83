"""``POST /v1/feedback``: the right answer to a logged call."""

from __future__ import annotations

import asyncio

import orjson

from pilotfish.errors import LogError
from pilotfish.gateway.admission import INVALID, Admission, Receive, Refused, Scope, Send, respond
from pilotfish.gateway.exchange import Exchange
from pilotfish.traffic import TrafficLog

__all__ = ["give_feedback"]

MAX_LABEL_CHARACTERS = 100_000


async def give_feedback(admission: Admission, log: TrafficLog, scope: Scope, receive: Receive, send: Send) -> None:
    """Record ``{"id": ..., "label": ...}``: the id of a call (header ``x-pilotfish-call``) or of its reply."""
    exchange = Exchange(scope)
    try:
        if exchange.method != "POST":
            raise Refused(405, "Feedback is given with POST.", INVALID, "method_not_allowed")
        await admission.read(exchange, receive)
        call_id, label = _checked(exchange)
        try:
            known = await asyncio.to_thread(log.feedback, call_id, label)
        except LogError as error:
            raise Refused(503, str(error), "server_error", "log_unavailable") from error
        if not known:
            message = f"There is no call {call_id[:100]!r} in the log: give a call's id or its reply's."
            raise Refused(404, message, INVALID, "unknown_call", "id")
    except Refused as refusal:
        await respond(send, refusal.status, refusal.body, [])
        return
    await respond(send, 200, orjson.dumps({"object": "feedback", "id": call_id, "label": label}), [])


def _checked(exchange: Exchange) -> tuple[str, str]:
    if not exchange.logged:
        raise Refused(400, "The body is not a JSON object with 'id' and 'label'.", INVALID, "invalid_json")
    values = []
    for name in ("id", "label"):
        value = exchange.data.get(name)
        if not isinstance(value, str) or not value or len(value) > MAX_LABEL_CHARACTERS:
            message = f"Field '{name}' is missing or of a wrong type: give a string."
            raise Refused(400, message, INVALID, "invalid_type", name)
        values.append(value)
    unknown = sorted(set(exchange.data) - {"id", "label"})
    if unknown:
        raise Refused(400, f"Field '{unknown[0][:100]}' is unknown: give 'id' and 'label'.", INVALID, "unknown_field")
    return values[0], values[1]
