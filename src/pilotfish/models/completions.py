"""Reading chat completions, the common tongue of the model back ends."""

from __future__ import annotations

from typing import Any

import orjson

from pilotfish.errors import UpstreamError
from pilotfish.types import Reply, TokenLogProb, Usage

__all__ = ["log_probs_of", "read_choices", "read_chunk", "read_completion"]


def read_completion(raw: bytes) -> Reply:
    """Read the body of a chat completion.

    Raises
    ------
    UpstreamError
        When it is none.

    Examples
    --------
    >>> read_completion(b'{"choices": [{"message": {"content": "Hello."}}]}').text
    'Hello.'
    """
    return read_choices(raw)[0]


def read_choices(raw: bytes) -> list[Reply]:
    """Read every choice of a chat completion, which has several where ``n`` were asked for; usage is the call's.

    Raises
    ------
    UpstreamError
        When it is none, or has no choice.

    Examples
    --------
    >>> said = b'{"choices": [{"message": {"content": "Yes"}}, {"message": {"content": "No"}}]}'
    >>> [reply.text for reply in read_choices(said)]
    ['Yes', 'No']
    """
    try:
        data = orjson.loads(raw)
        usage = data.get("usage") or {}
        known = str(data.get("model") or ""), Usage(*(int(usage.get(f"{k}_tokens") or 0) for k in _COUNTED))
        first, *others = data["choices"]
        return [_choice(choice, *known) for choice in (first, *others)]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UpstreamError(
            f"The model sent something that is not a chat completion ({type(error).__name__}): check base_url.",
            None,
            raw,
        ) from None


_COUNTED = ("prompt", "completion")


def _choice(choice: Any, model: str, usage: Usage) -> Reply:
    message = choice["message"]
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    return Reply(
        text=str(content),
        model=model,
        usage=usage,
        finish_reason=str(choice.get("finish_reason") or "stop"),
        log_probs=log_probs_of(choice.get("logprobs")),
        extra={key: value for key, value in message.items() if key not in ("role", "content")},
    )


def read_chunk(event: bytes) -> tuple[str, bool]:
    """Read one event of a streamed chat completion: its text, and whether the reply ends with it.

    Raises
    ------
    UpstreamError
        When it is no such event, or states an error.

    Examples
    --------
    >>> read_chunk(b'{"choices": [{"delta": {"content": "Hel"}, "finish_reason": null}]}')
    ('Hel', False)
    """
    try:
        data = orjson.loads(event)
        if "error" in data:
            raise UpstreamError(f"The model's stream broke off with an error: {str(data['error'])[:300]}", None, event)
        if not data["choices"]:
            return "", False
        choice = data["choices"][0]
        return str((choice.get("delta") or {}).get("content") or ""), choice.get("finish_reason") is not None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UpstreamError(
            "The model's stream has an event that is no chunk of a chat completion.", None, event
        ) from None


def log_probs_of(data: Any, n_top: int | None = None) -> tuple[TokenLogProb, ...]:
    """Read the ``logprobs`` of a choice, with at most ``n_top`` alternatives a token.

    Examples
    --------
    >>> log_probs_of({"content": [{"token": "a", "logprob": -0.5}]})
    (TokenLogProb(token='a', log_prob=-0.5, top=()),)
    """
    return tuple(
        TokenLogProb(
            str(item["token"]),
            float(item["logprob"]),
            tuple((str(top["token"]), float(top["logprob"])) for top in (item.get("top_logprobs") or ())[:n_top]),
        )
        for item in (data or {}).get("content") or ()
    )
