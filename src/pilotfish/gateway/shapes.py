"""The shapes of the OpenAI interface: errors, local replies, streams put together, what may be answered locally."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from pilotfish.types import Reply

__all__ = [
    "assemble",
    "completion",
    "completion_stream",
    "error_body",
    "usage_body",
    "usage_of",
    "why_not_local",
]

# Fields that change nothing about a plain text answer of a student.
_HARMLESS = frozenset(
    [
        "frequency_penalty",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "seed",
        "service_tier",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "user",
        "verbosity",
    ]
)
# Fields that are harmless with these values only.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "stop": (None, []),
    "store": (None, False),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
}
_PLAIN_ROLES = frozenset(["system", "developer", "user", "assistant"])


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """Write an error in the OpenAI form.

    Examples
    --------
    >>> error_body("No such path.", "invalid_request_error", "unknown_url")
    b'{"error":{"message":"No such path.","type":"invalid_request_error","param":null,"code":"unknown_url"}}'
    """
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def why_not_local(body: Mapping[str, Any]) -> str | None:
    """Say what in a chat call asks for more than one plain text, so that no student may answer it; None if nothing.

    Examples
    --------
    >>> why_not_local({"messages": [{"role": "user", "content": "Hi"}], "n": 2})
    'asks for n'
    """
    for name, value in body.items():
        if name in _HARMLESS:
            continue
        neutral = _NEUTRAL.get(name)
        # ``True`` equals 1 in Python, yet is no number here.
        if neutral is None or not any(value == item and type(value) is type(item) for item in neutral):
            return f"asks for {name}"[:80]
    for message in body["messages"]:
        if str(message.get("role")) not in _PLAIN_ROLES:
            return "has a message of another role"
        if not message.keys() <= {"role", "content", "name"}:
            return "has a message with more than text"
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, list) or any(part.get("type") != "text" for part in content):
            return "has a message with more than text"
    return None


def completion(call_id: str, created: float, asked: str, *replies: Reply) -> dict[str, Any]:
    """Write a reply as a chat completion, or several as its choices."""
    return {
        "id": _completion_id(call_id),
        "object": "chat.completion",
        "created": int(created),
        "model": replies[0].model or asked,
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": _content(reply), "refusal": None, **reply.extra},
                "logprobs": _log_probs(reply),
                "finish_reason": reply.finish_reason,
            }
            for i, reply in enumerate(replies)
        ],
        "usage": usage_body(*replies),
    }


def completion_stream(call_id: str, created: float, asked: str, *replies: Reply, with_usage: bool) -> bytes:
    """Write a reply as the server-sent events of a chat completion, or several as its choices."""
    head = {
        "id": _completion_id(call_id),
        "object": "chat.completion.chunk",
        "created": int(created),
        "model": replies[0].model or asked,
    }
    events: list[dict[str, Any]] = []
    for i, reply in enumerate(replies):
        for delta, log_probs, reason in (
            ({"role": "assistant", "content": "", "refusal": None}, None, None),
            ({"content": reply.text, **_numbered(reply.extra)}, _log_probs(reply), None),
            ({}, None, reply.finish_reason),
        ):
            choice = {"index": i, "delta": delta, "logprobs": log_probs, "finish_reason": reason}
            events.append({**head, "choices": [choice]})
    if with_usage:
        events = [{**event, "usage": None} for event in events]
        events.append({**head, "choices": [], "usage": usage_body(*replies)})
    return b"".join([b"data: " + orjson.dumps(event) + b"\n\n" for event in events]) + b"data: [DONE]\n\n"


def _content(reply: Reply) -> str | None:
    return None if reply.extra.get("tool_calls") and not reply.text else reply.text


def _numbered(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Further fields of a message as those of a delta, whose tool calls say which one each is."""
    calls = extra.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return dict(extra)
    return {**extra, "tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}


def _log_probs(reply: Reply) -> dict[str, Any] | None:
    if not reply.log_probs:
        return None
    content = [
        {"token": t.token, "logprob": t.log_prob, "top_logprobs": [{"token": a, "logprob": b} for a, b in t.top]}
        for t in reply.log_probs
    ]
    return {"content": content}


def usage_of(reply: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Read the tokens read, those of them from a cache, and the tokens written; None where the reply says nothing."""
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return None
    n_prompt = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
    n_completion = _count(usage.get("completion_tokens", usage.get("output_tokens", 0)))
    if n_prompt is None or n_completion is None:
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    n_cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return n_prompt, n_cached or 0, n_completion


def assemble(stream: bytes) -> tuple[dict[str, Any] | None, bool]:
    """Put the completion together from the server-sent events of a stream.

    Returns
    -------
    tuple
        The completion or response body, None when no event was understood; and whether the stream came to its end.
    """
    body: dict[str, Any] | None = None
    choices: dict[int, dict[str, Any]] = {}
    ended = False
    for data in _events(stream):
        if data == b"[DONE]":
            ended = True
            continue
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            continue
        if not isinstance(event, dict):
            continue
        kind = event.get("type")
        if kind in ("response.completed", "response.incomplete", "response.failed") and "response" in event:
            return event["response"], True
        if "choices" not in event:
            continue
        if body is None:
            body = {key: value for key, value in event.items() if key not in ("choices", "usage")}
            body["object"] = str(event.get("object", "chat.completion")).removesuffix(".chunk")
        if event.get("usage"):
            body["usage"] = event["usage"]
        for choice in event["choices"] if isinstance(event["choices"], list) else ():
            if isinstance(choice, dict):
                index = choice.get("index")
                _add_choice(choices.setdefault(index if isinstance(index, int) else 0, {}), choice)
    if body is not None:
        body["choices"] = [choices[index] for index in sorted(choices)]
    return body, ended


def _add_choice(whole: dict[str, Any], part: Mapping[str, Any]) -> None:
    whole.setdefault("index", part.get("index", 0))
    for name, value in part.items():
        if name == "delta" and isinstance(value, dict):
            if not isinstance(whole.get("message"), dict):
                whole["message"] = {}
            _merge(whole["message"], value)
        elif name == "text" and isinstance(value, str):
            before = whole.get("text")
            whole["text"] = before + value if isinstance(before, str) else value
        elif name == "logprobs" and isinstance(value, dict):
            if not isinstance(whole.get("logprobs"), dict):
                whole["logprobs"] = {}
            _merge(whole["logprobs"], value)
        elif value is not None and name != "index":
            whole[name] = value


def _merge(whole: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add a delta: texts are joined, lists are joined by their items' index, objects are merged."""
    for name, value in part.items():
        before = whole.get(name)
        if isinstance(value, str) and isinstance(before, str) and name not in ("role", "type", "id"):
            whole[name] = before + value
        elif isinstance(value, dict) and isinstance(before, dict):
            _merge(before, value)
        elif isinstance(value, list) and isinstance(before, list | None):
            whole[name] = _merged_list(before or [], value)
        elif value is not None or name not in whole:
            whole[name] = value


def _merged_list(whole: list[Any], part: list[Any]) -> list[Any]:
    for item in part:
        index = item.get("index") if isinstance(item, dict) else None
        found = next((one for one in whole if isinstance(one, dict) and one.get("index") == index), None)
        if index is None or found is None:
            whole.append(item)
        else:
            _merge(found, item)
    return whole


def _events(stream: bytes) -> Iterator[bytes]:
    """The data of each server-sent event; lines end in LF, CR LF or CR."""
    if b"\r" in stream:
        stream = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for block in stream.split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def usage_body(*replies: Reply) -> dict[str, int]:
    """Write what replies to one prompt took."""
    n_prompt = max(reply.usage.prompt_tokens for reply in replies)
    n_completion = sum(reply.usage.completion_tokens for reply in replies)
    return {"prompt_tokens": n_prompt, "completion_tokens": n_completion, "total_tokens": n_prompt + n_completion}


def _completion_id(call_id: str) -> str:
    return f"chatcmpl-{call_id}"


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
