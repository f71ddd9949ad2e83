"""The values that travel: messages, requests, replies, usage and exchanges. All frozen, all plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pilotfish.errors import InputError

__all__ = ["Exchange", "Message", "Reply", "Request", "TokenLogProb", "Usage"]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Parameters
    ----------
    role : str
        One of system, developer, user, assistant, tool, function.
    content : str or tuple of mapping
        The text, or the parts (text, image_url, ...) in the OpenAI form.
    extra : mapping
        Any further fields (name, tool_calls, tool_call_id), passed on untouched.

    Examples
    --------
    >>> Message("user", "Where is my card?").text
    'Where is my card?'
    """

    role: str
    content: str | tuple[Mapping[str, Any], ...] = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError(f"Message role is {self.role!r}: use one of {', '.join(sorted(ROLES))}.")

    @property
    def text(self) -> str:
        """The text of the message; text parts are joined by newlines, other parts are left out."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(str(part["text"]) for part in self.content if part.get("type") == "text" and "text" in part)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Message:
        """Read the OpenAI form of a message.

        Raises
        ------
        InputError
            When the role is unknown or the content is neither text, parts nor null.
        """
        content = data.get("content")
        if content is None:
            content = ""
        elif isinstance(content, list):
            if not all(isinstance(part, Mapping) for part in content):
                raise InputError("A message's content has a part that is not an object: give parts as objects.")
            content = tuple(content)
        elif not isinstance(content, str):
            raise InputError(f"A message's content is a {type(content).__name__}: give text or a list of parts.")
        extra = {key: value for key, value in data.items() if key not in ("role", "content")}
        return cls(str(data.get("role", "")), content, extra)

    def to_json(self) -> dict[str, Any]:
        """Write the OpenAI form of the message."""
        content: Any = self.content if isinstance(self.content, str) else list(self.content)
        return {"role": self.role, "content": content, **self.extra}


@dataclass(frozen=True, slots=True)
class Request:
    """What a model is asked.

    Parameters
    ----------
    messages : tuple of Message
        The conversation so far, at least one message.
    model : str
        The name asked for; empty means the model's own choice.
    temperature, top_p : float or None
        Sampling settings; None leaves them to the model.
    max_tokens : int or None
        Longest reply, in tokens.
    stop : tuple of str
        Strings that end the reply.
    seed : int or None
        Seed of the sampling.
    log_probs : int or None
        Ask for token log-probabilities with that many alternatives (0: only the chosen token).
    extra : mapping
        Every other field of the call, passed on untouched (tools, response_format, ...).
    metadata : mapping
        What the gateway knows besides the call (alias, headers); never sent on.

    Examples
    --------
    >>> Request.of("Where is my card?", system="Answer with an intent.").prompt
    'Where is my card?'
    """

    messages: tuple[Message, ...]
    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    log_probs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages:
            raise InputError("Request messages are empty: give at least one message.")
        for name in ("max_tokens", "log_probs"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"Field '{name}' is {value}: give 0 or more.")
        stop: Any = self.stop
        if isinstance(stop, str):  # each of its characters would end the reply
            raise InputError(f"Field 'stop' is {stop!r}: give a tuple of strings, such as ({stop!r},).")

    @classmethod
    def of(cls, prompt: str, system: str | None = None, **fields: Any) -> Request:
        """Make a request of one user message, with an optional system message before it."""
        head = (Message("system", system),) if system is not None else ()
        return cls((*head, Message("user", prompt)), **fields)

    @property
    def system(self) -> str:
        """The text of the leading system or developer messages, joined by newlines."""
        return "\n".join(m.text for m in self.messages if m.role in ("system", "developer"))

    @property
    def prompt(self) -> str:
        """The text of the last user message; empty when there is none."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.text
        return ""

    @classmethod
    def from_json(cls, body: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Request:
        """Read the body of an OpenAI chat completion call.

        Raises
        ------
        InputError
            When ``messages`` or a known field has the wrong type; the sentence names the field.
        """
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
            raise InputError("Field 'messages' is missing or not a list of objects: send the conversation as a list.")
        stop = body.get("stop")
        if isinstance(stop, str):
            stop = [stop]
        elif stop is not None and not (isinstance(stop, list) and all(isinstance(s, str) for s in stop)):
            raise InputError(f"Field 'stop' is {stop!r}: give a string or a list of strings.")
        max_tokens = body.get("max_completion_tokens", body.get("max_tokens"))
        wants_log_probs = bool(body.get("logprobs"))
        top = _number(body, "top_logprobs", int)
        return cls(
            messages=tuple(Message.from_json(m) for m in messages),
            model=str(body.get("model") or ""),
            temperature=_number(body, "temperature", float),
            top_p=_number(body, "top_p", float),
            max_tokens=_number({"max_tokens": max_tokens}, "max_tokens", int),
            stop=tuple(stop or ()),
            seed=_number(body, "seed", int),
            log_probs=(top or 0) if wants_log_probs else None,
            extra={k: v for k, v in body.items() if k not in _KNOWN},
            metadata=dict(metadata or {}),
        )

    def to_json(self) -> dict[str, Any]:
        """Write the body of an OpenAI chat completion call; unset fields are left out."""
        body: dict[str, Any] = {"model": self.model, "messages": [m.to_json() for m in self.messages]}
        for name in ("temperature", "top_p", "max_tokens", "seed"):
            if getattr(self, name) is not None:
                body[name] = getattr(self, name)
        if self.stop:
            body["stop"] = list(self.stop)
        if self.log_probs is not None:
            body["logprobs"] = True
            if self.log_probs:
                body["top_logprobs"] = self.log_probs
        body.update(self.extra)
        return body

    def replace(self, **changes: Any) -> Request:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


_KNOWN = frozenset(
    [
        "messages",
        "model",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "logprobs",
        "top_logprobs",
    ]
)


def _number(body: Mapping[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and value != int(value)):
        raise InputError(f"Field '{name}' is {value!r}: give a number.")
    return kind(value)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a reply took.

    Parameters
    ----------
    prompt_tokens, completion_tokens : int
        Tokens read and written.
    cost : float
        Price in US dollars.
    latency : float
        Wall time in seconds.

    Examples
    --------
    >>> (Usage(10, 2, 0.5) + Usage(1, 1, 0.25)).cost
    0.75
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    latency: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
            self.latency + other.latency,
        )


@dataclass(frozen=True, slots=True)
class TokenLogProb:
    """One written token with its natural log-probability and, where asked for, the alternatives."""

    token: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered.

    Parameters
    ----------
    text : str
        The answer.
    model : str
        The model that answered.
    usage : Usage
        What it took, everything tried on the way included.
    confidence : float or None
        Probability in [0, 1] that the answer is right, where the model states one.
    finish_reason : str
        ``stop``, ``length``, ``tool_calls`` or ``content_filter``.
    log_probs : tuple of TokenLogProb
        Per written token, where the model gives them.
    reason : str
        Why this model answered, for logs and headers; empty for a single model.
    extra : mapping
        Further fields of the assistant message (tool_calls, refusal), passed on untouched.
    """

    text: str
    model: str = ""
    usage: Usage = Usage()
    confidence: float | None = None
    finish_reason: str = "stop"
    log_probs: tuple[TokenLogProb, ...] = ()
    reason: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def replace(self, **changes: Any) -> Reply:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request with one reply to it and, where known, what the reply should have been.

    Scorers of answers take exchanges; so do the metrics.

    Parameters
    ----------
    request : Request
        What was asked.
    reply : Reply
        What was answered.
    references : tuple of str
        Right answers, where known.
    samples : tuple of Reply
        Other replies to the same request, for measures of agreement.
    context : tuple of str
        Documents the answer should be grounded in.
    """

    request: Request
    reply: Reply
    references: Sequence[str] = ()
    samples: Sequence[Reply] = ()
    context: Sequence[str] = ()
