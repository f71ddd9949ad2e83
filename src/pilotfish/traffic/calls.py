"""A logged call, what else the log tells, and whatever may answer calls in the large model's place."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Protocol

import orjson

from pilotfish.types import Message, Reply, Request

__all__ = ["Answerer", "Call", "Event", "Totals", "Verdict", "new_call_id"]

UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the log keeps it.

    Parameters
    ----------
    id : str
        Name of the call, unique in the log; the reply header ``x-pilotfish-call`` carries it.
    created : float
        When the call came in, unix seconds by the wall clock (it may go back: order calls by ``seq``).
    task : str or None
        The task the call belongs to, where one was found.
    endpoint : str
        Path below the base address, for example ``/v1/chat/completions``.
    model : str
        The model asked for.
    request : bytes
        The JSON body as received; empty for bodies that are not JSON.
    reply : bytes
        The JSON body as sent; for a stream the completion put together from its chunks. The vectors of an embedding
        call are left out.
    status : int
        HTTP status sent to the client; 499 when the client left before there was one.
    answered_by : str
        ``upstream``, ``student:VERSION``, the name of the fall-back or local model, or empty when nobody answered.
    prediction : str or None
        The student's answer, also where it was not used.
    confidence : float or None
        The student's probability in [0, 1] that its answer is right; 0 where one in service gave no answer.
    reason : str
        Why this model answered, or what went wrong.
    audit : str or None
        The large model's text, where a local answer was audited.
    gold : str or None
        The right answer, where known from feedback or import.
    latency : float
        Seconds from the call to the last byte of the reply.
    prompt_tokens, completion_tokens : int
        Tokens read and written.
    cost : float
        Price of the call in US dollars, its audit included.
    key_id : str or None
        Name of the gateway key that was used; never the key itself.
    stream : bool
        Whether the reply was streamed.
    complete : bool
        False when the reply was cut off, by the client or by the upstream.
    sampled : bool
        Whether the call was drawn at random to be put to the large model, whatever the student thought of it.
    reply_id : str
        The ``id`` inside the reply's body; feedback may name the call by it.
    seq : int
        Position in the log, rising in the order of commits over all processes; 0 before the call is written.

    Examples
    --------
    >>> call = Call.of("Where is my card?", "card_arrival", system="Answer with an intent.")
    >>> call.prompt, call.answer
    ('Where is my card?', 'card_arrival')
    """

    id: str
    created: float
    task: str | None = None
    endpoint: str = "/v1/chat/completions"
    model: str = ""
    request: bytes = b""
    reply: bytes = b""
    status: int = 200
    answered_by: str = UPSTREAM
    prediction: str | None = None
    confidence: float | None = None
    reason: str = ""
    audit: str | None = None
    gold: str | None = None
    latency: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    key_id: str | None = None
    stream: bool = False
    complete: bool = True
    sampled: bool = False
    reply_id: str = ""
    seq: int = 0

    @classmethod
    def of(cls, prompt: str, answer: str, *, system: str | None = None, model: str = "", **fields: Any) -> Call:
        """Make a call of one prompt and one answer, with any further fields of the call."""
        body = Request.of(prompt, system=system, model=model).to_json()
        fields.setdefault("id", new_call_id())
        fields.setdefault("created", time.time())
        return cls(request=orjson.dumps(body), reply=completion_body(answer, model), model=model, **fields)

    @property
    def messages(self) -> list[Any]:
        """The messages of the request in the OpenAI form; empty when it has none."""
        messages = json_object(self.request).get("messages")
        return messages if isinstance(messages, list) else []

    @property
    def prompt(self) -> str:
        """The text of the last user message; empty when there is none."""
        for message in reversed(self.messages):
            if isinstance(message, dict) and message.get("role") == "user":
                return _text(message)
        return ""

    @property
    def system(self) -> str:
        """The text of the system and developer messages, joined by newlines."""
        texts = [_text(m) for m in self.messages if isinstance(m, dict) and m.get("role") in ("system", "developer")]
        return "\n".join(texts)

    @property
    def answer(self) -> str:
        """The text of the reply's first choice; empty when there is none."""
        return answer_text(json_object(self.reply))

    def to_request(self) -> Request:
        """The request as a model takes it.

        Raises
        ------
        InputError
            When the logged body is not a chat completion call.
        """
        return Request.from_json(json_object(self.request))

    def replace(self, **changes: Any) -> Call:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task: its position in the log, when (unix seconds), its kind and its details."""

    seq: int
    created: float
    task: str
    kind: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the calls of one task answered by one model; ``first`` and ``last`` are unix seconds."""

    task: str | None
    answered_by: str
    n_calls: int
    n_gold: int
    n_audited: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    latency: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the student has to say on one call.

    Parameters
    ----------
    task : str or None
        The task of the call.
    reply : Reply or None
        The answer to send; None escalates to the large model (also in shadow). ``reply.model`` names who answers,
        ``student:VERSION``.
    prediction : str or None
        The student's answer, also where it is not sent.
    confidence : float or None
        Probability in [0, 1] that the prediction is right; 0 where a student in service gave none.
    audit : bool
        Whether the call was drawn at random to be put to the large model, in the background if it is answered locally.
    reason : str
        Why it was sent or not; one short phrase for the reply header.
    """

    task: str | None = None
    reply: Reply | None = None
    prediction: str | None = None
    confidence: float | None = None
    audit: bool = False
    reason: str = ""


class Answerer(Protocol):
    """Whatever may answer calls in the large model's place. Its failures escalate, they never reach a client."""

    def task_of(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
        """Name the task of a call, or None. Called on the event loop: microseconds, no waiting.

        ``headers`` have lower-case names.
        """
        ...

    def active(self, task: str) -> bool:
        """Whether the task has a student in shadow or live. Called on the event loop."""
        ...

    def answer(self, task: str, request: Request) -> Verdict:
        """Judge one call. Called in one worker thread, about 2 ms at most."""
        ...

    def observe(self, call: Call) -> None:
        """Learn of a call once its record is written, and of an audited one once its audit is in.

        Called in a worker thread, never on the event loop.
        """
        ...


class _Ids:
    """Names for calls: rising within a process even when the clock goes back, never the same in two processes."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.last = 0
        self.lock = Lock()
        self.process = secrets.token_hex(4)

    def next(self) -> str:
        with self.lock:
            self.last = max(self.last + 1, time.time_ns() >> 10)
            return f"call-{self.last:013x}-{self.process}"


_ids = _Ids()
new_call_id = _ids.next
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.renew)


def completion_body(text: str, model: str) -> bytes:
    """The smallest chat completion body with this answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return orjson.dumps({"object": "chat.completion", "model": model, "choices": [choice]})


def answer_text(reply: Mapping[str, Any]) -> str:
    """The text of a chat completion, completion or response body; empty when it holds none."""
    choices = reply.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        message = choices[0].get("message")
        if isinstance(message, dict):
            return _text(message)
        text = choices[0].get("text")
        return text if isinstance(text, str) else ""
    output = reply.get("output")
    if not isinstance(output, list):
        return ""
    parts = [
        part["text"]
        for item in output
        if isinstance(item, dict) and isinstance(item.get("content"), list)
        for part in item["content"]
        if isinstance(part, dict) and part.get("type") == "output_text" and isinstance(part.get("text"), str)
    ]
    return "".join(parts)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return ""
    return Message("user", tuple(content)).text


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; of a form, a file or anything else an empty one."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return data if isinstance(data, dict) else {}
