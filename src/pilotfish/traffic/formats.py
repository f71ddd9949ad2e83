"""What other tools' logs look like: each record becomes a request, a reply and what is known about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from pilotfish.errors import InputError

__all__ = ["FORMATS", "Format", "Imported", "format_of", "read_record"]

Format = Literal["openai", "batch", "litellm", "langfuse", "table", "pilotfish"]
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Imported:
    """One exchange found in a file; ``fields`` are fields of the call."""

    request: dict[str, Any]
    reply: dict[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)


def format_of(record: Record) -> Format:
    """Tell by its fields which tool wrote a record.

    Raises
    ------
    InputError
        When it is of no known format.
    """
    for name, fields in (
        ("pilotfish", {"id", "request", "reply", "answered_by"}),
        ("openai", {"request", "response"}),
        ("batch", {"custom_id", "response"}),
        ("litellm", {"messages", "response"}),
        ("langfuse", {"traceId", "input", "output"}),
        ("langfuse", {"trace_id", "input", "output"}),
        ("table", {"input", "output"}),
    ):
        if fields <= record.keys():
            return name  # type: ignore[return-value]
    raise InputError("it is of no known format: give 'request' and 'response', or 'input' and 'output'")


def read_record(record: Record, kind: Format, requests: Mapping[str, Record]) -> Imported | None:
    """Read one record; None when it is sound but no call (a failed one, a span of a trace).

    Parameters
    ----------
    record : mapping
        The record.
    kind : str
        Its format.
    requests : mapping
        Request bodies by ``custom_id``, for replies of the Batch interface.

    Raises
    ------
    InputError
        When a field is missing or wrong; what is wrong, without a full stop.
    """
    for name in _NEEDED[kind]:
        if name not in record:
            raise InputError(f"field '{name}' is missing: give it, or another --format than {kind}")
    if kind == "batch":
        return _batch(record, requests)
    return FORMATS[kind](record)


def _openai(record: Record) -> Imported | None:
    request = _object(record, "request")
    response = _object(record, "response")
    request = _object(request, "body") if "body" in request and "messages" not in request else request
    response = _object(response, "body") if "body" in response else response
    fields = _known(record)
    fields["created"] = _moment(record, "created", "created_at", "timestamp") or _moment(response, "created")
    return Imported(dict(request), dict(response), fields)


def _batch(record: Record, requests: Mapping[str, Record]) -> Imported | None:
    if record.get("error") or not record.get("response"):
        return None
    response = _object(record, "response")
    if response.get("status_code", 200) != 200:
        return None
    name = str(record["custom_id"])
    request = record.get("body") or requests.get(name)
    if not isinstance(request, Mapping):
        raise InputError(f"custom_id {name[:80]!r} has no request: give the batch's input file with --requests")
    body = _object(response, "body")
    return Imported(dict(request), dict(body), {"created": _moment(body, "created")})


def _litellm(record: Record) -> Imported | None:
    if record.get("status") == "failure" or record.get("call_type") in ("aembedding", "embedding"):
        return None
    messages = _decoded(record["messages"])
    parameters = _decoded(record.get("model_parameters")) or {}
    response = _decoded(record["response"])
    if not isinstance(response, Mapping):
        raise InputError("field 'response' is not an object: export the replies too")
    request = {"model": record.get("model_group") or record.get("model") or "", "messages": _messages(messages)}
    if isinstance(parameters, Mapping):
        request |= {key: value for key, value in parameters.items() if key not in ("stream", "messages", "model")}
    start, end = _moment(record, "startTime"), _moment(record, "endTime")
    fields = {
        "created": start,
        "latency": end - start if start is not None and end is not None else None,
        "cost": _number(record, "response_cost", "spend"),
        "prompt_tokens": _number(record, "prompt_tokens"),
        "completion_tokens": _number(record, "completion_tokens"),
    }
    return Imported(request, dict(response), fields)


def _langfuse(record: Record) -> Imported | None:
    if str(record.get("type") or "GENERATION").upper() != "GENERATION" or record.get("level") == "ERROR":
        return None
    question, answer = _decoded(record["input"]), _decoded(record["output"])
    model = _first(record, "model", "provided_model_name", "providedModelName") or ""
    parameters = _decoded(_first(record, "modelParameters", "model_parameters")) or {}
    if isinstance(question, Mapping) and "messages" in question:
        request = {"model": model, **question}
    else:
        request = {"model": model, "messages": _messages(question)}
    if isinstance(parameters, Mapping):
        request |= {key: value for key, value in parameters.items() if key not in request}
    usage = _decoded(_first(record, "usageDetails", "usage_details", "usage")) or {}
    start = _moment(record, "startTime", "start_time")
    end = _moment(record, "endTime", "end_time")
    fields = {
        "created": start,
        "latency": end - start if start is not None and end is not None else None,
        "cost": _number(record, "totalCost", "total_cost", "calculatedTotalCost"),
        "prompt_tokens": _number(usage, "input") if isinstance(usage, Mapping) else None,
        "completion_tokens": _number(usage, "output") if isinstance(usage, Mapping) else None,
    }
    return Imported(request, _reply(answer, str(model)), fields)


def _table(record: Record) -> Imported | None:
    question, answer = record["input"], record.get("output")
    if not isinstance(question, str) or not question.strip():
        raise InputError("field 'input' is empty: give the prompt")
    if answer is None:
        raise InputError("field 'output' is missing: give the answer")
    system = record.get("system")
    messages = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    model = str(record.get("model") or "")
    request = {"model": model, "messages": [*messages, {"role": "user", "content": question}]}
    fields = _known(record)
    fields["created"] = _moment(record, "created", "timestamp")
    return Imported(request, _reply(answer, model), fields)


_NEEDED: dict[str, tuple[str, ...]] = {
    "openai": ("request", "response"),
    "batch": ("custom_id",),
    "litellm": ("messages", "response"),
    "langfuse": ("input", "output"),
    "table": ("input",),
}

FORMATS: dict[str, Callable[[Record], Imported | None]] = {
    "openai": _openai,
    "litellm": _litellm,
    "langfuse": _langfuse,
    "table": _table,
}


def _known(record: Record) -> dict[str, Any]:
    """What our own names say: label, task, cost, latency."""
    latency = _number(record, "latency_ms", "duration_ms")
    return {
        "gold": _text(_first(record, "label", "gold")),
        "task": _text(record.get("task")),
        "cost": _number(record, "cost", "cost_usd"),
        "latency": latency / 1000 if latency is not None else _number(record, "latency"),
    }


def _messages(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return value
    raise InputError("its messages are neither a text nor a list of objects: export the prompts too")


def _reply(answer: Any, model: str) -> dict[str, Any]:
    """A chat completion around an answer in one of its usual forms."""
    if isinstance(answer, Mapping) and "choices" in answer:
        return dict(answer)
    if isinstance(answer, Mapping) and ("content" in answer or "tool_calls" in answer):
        message = {"role": "assistant", **answer}
    elif isinstance(answer, Mapping) and isinstance(answer.get("completion"), str):
        message = {"role": "assistant", "content": answer["completion"]}
    elif isinstance(answer, str):
        message = {"role": "assistant", "content": answer}
    elif isinstance(answer, list) and answer and isinstance(answer[-1], Mapping):
        message = {"role": "assistant", **answer[-1]}
    elif answer is None:
        raise InputError("field 'output' is empty: export the answers too")
    else:
        message = {"role": "assistant", "content": orjson.dumps(answer).decode()}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"object": "chat.completion", "model": model, "choices": [choice]}


def _decoded(value: Any) -> Any:
    """Undo JSON inside a text, as tables hold it; other texts stay."""
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _object(record: Record, name: str) -> Mapping[str, Any]:
    value = record.get(name)
    if not isinstance(value, Mapping):
        raise InputError(f"field '{name}' is missing or not an object: give the body")
    return value


def _first(record: Record, *names: str) -> Any:
    return _named(record, *names)[1]


def _named(record: Record, *names: str) -> tuple[str, Any]:
    """The first of some fields that says anything, and its value."""
    return next(((name, record[name]) for name in names if record.get(name) not in (None, "")), ("", None))


def _text(value: Any) -> str | None:
    """A text, or what else was given as answers hold it; None for none."""
    return value or None if isinstance(value, str | None) else orjson.dumps(value).decode()


def _number(record: Record, *names: str) -> float | None:
    name, value = _named(record, *names)
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise InputError(f"field '{name}' is {value!r:.40}: give a number of 0 or more")
    return number


def _moment(record: Record, *names: str) -> float | None:
    """Unix seconds of a number (seconds, or milliseconds) or an ISO 8601 text; UTC unless it says otherwise."""
    name, value = _named(record, *names)
    if value is None or isinstance(value, bool):
        return None
    wrong = InputError(f"field '{name}' is {value!r:.40}, which is no moment: give unix seconds or ISO 8601")
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            raise wrong from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds) or seconds < 0:
        raise wrong
    return seconds / 1000 if seconds > 1e11 else seconds
