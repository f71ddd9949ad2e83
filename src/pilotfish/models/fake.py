"""A model that answers by script, for tests and examples."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence

from pilotfish.errors import InputError
from pilotfish.types import Reply, Request, TokenLogProb, Usage

__all__ = ["FakeModel"]

_Answer = str | Reply | Exception


class FakeModel:
    """A model whose replies are given beforehand. A token is a word with the space behind it.

    Parameters
    ----------
    replies : str, sequence, mapping or callable
        One text for every request; texts (or replies) in the order of the calls; a mapping from prompt to text (or
        reply); or a function of the request. An exception in place of a text is raised.
    name : str
        Stated as the model of its replies.
    confidence : float or None
        Stated with replies that have none.
    delay : float
        Seconds that each reply takes.
    log_prob : float
        Log-probability of every token, where the request asks for them.
    prompt_price, completion_price : float
        US dollars per million tokens read and written.

    Attributes
    ----------
    calls : list of Request
        Every request so far, in order.

    Examples
    --------
    >>> model = FakeModel({"Where is my card?": "card_arrival"}, confidence=0.9)
    >>> model.generate([Request.of("Where is my card?")])[0].text
    'card_arrival'
    >>> len(model.calls)
    1
    """

    def __init__(
        self,
        replies: str | Sequence[_Answer] | Mapping[str, _Answer] | Callable[[Request], _Answer] = "yes",
        *,
        name: str = "fake",
        confidence: float | None = None,
        delay: float = 0.0,
        log_prob: float = 0.0,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
    ) -> None:
        self.replies = replies
        self.name = name
        self.confidence = confidence
        self.delay = delay
        self.log_prob = log_prob
        self.prompt_price = prompt_price
        self.completion_price = completion_price
        self.calls: list[Request] = []
        self._lock = threading.Lock()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        InputError
            When the script has no reply for a request.
        """
        return [self._answer(request) for request in requests]

    def stream(self, request: Request) -> Generator[str, None, Reply]:
        """Yield the reply's text token by token, and return the reply."""
        reply = self._answer(request)
        yield from _tokens(reply.text)
        return reply

    def _answer(self, request: Request) -> Reply:
        with self._lock:
            n_before = len(self.calls)
            self.calls.append(request)
        if self.delay:
            time.sleep(self.delay)
        answer = self._scripted(request, n_before)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Reply):
            return answer
        tokens, finish_reason = _cut(answer, request)
        n_read = sum(len(_tokens(message.text)) for message in request.messages)
        cost = (self.prompt_price * n_read + self.completion_price * len(tokens)) / 1e6
        return Reply(
            text="".join(tokens),
            model=self.name,
            usage=Usage(n_read, len(tokens), cost, self.delay),
            confidence=self.confidence,
            finish_reason=finish_reason,
            log_probs=tuple(TokenLogProb(token, self.log_prob) for token in tokens)
            if request.log_probs is not None
            else (),
        )

    def _scripted(self, request: Request, n_before: int) -> _Answer:
        if isinstance(self.replies, str):
            return self.replies
        if isinstance(self.replies, Mapping):
            if request.prompt not in self.replies:
                raise InputError(f"The fake model has no reply to {request.prompt!r}: add it to its mapping.")
            return self.replies[request.prompt]
        if callable(self.replies):
            return self.replies(request)
        if n_before >= len(self.replies):
            raise InputError(f"The fake model has {len(self.replies)} replies and got a further call: give it more.")
        return self.replies[n_before]


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*|\s+", text)


def _cut(text: str, request: Request) -> tuple[list[str], str]:
    stops = [text.index(stop) for stop in request.stop if stop in text]
    tokens = _tokens(text[: min(stops)] if stops else text)
    if request.max_tokens is not None and len(tokens) > request.max_tokens:
        return tokens[: request.max_tokens], "length"
    return tokens, "stop"
