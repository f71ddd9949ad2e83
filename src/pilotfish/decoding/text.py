"""Text out of tokens as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish.protocols import Tokenizer

__all__ = ["TextStream"]

_N_CONTEXT = 6
"""Tokens decoded again before the new ones, so that spaces and split characters come out as in the whole text."""


class TextStream:
    """Turns tokens into text piece by piece.

    A character split across tokens is held back until it is whole, and what may be the beginning of a stop string until
    it is known not to be.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the tokens.
    stops : sequence of str
        Strings that end the text; the text ends before the first of them.

    Attributes
    ----------
    stopped : bool
        Whether a stop string was met.
    n_tokens : int
        Tokens taken, those of a stop string left out.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> tokenizer = NGramModel(2, "char").fit(["where is my card?"]).tokenizer
    >>> stream = TextStream(tokenizer, stops=["card"])
    >>> "".join(stream.write(token) for token in tokenizer.encode("my card"))
    'my '
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stops = tuple(stop for stop in stops if stop)
        self.stopped = False
        self.n_tokens = 0
        self._tokens: list[int] = []
        self._from = 0
        self._decoded = ""
        self._held = ""

    def write(self, token: int) -> str:
        """Take a token, and give the text that is now certain."""
        self._tokens.append(token)
        window = self.tokenizer.decode(self._tokens[self._from :])
        if window.endswith("\ufffd") and len(self._tokens) - self._from < 4 * _N_CONTEXT:
            return ""
        new = window[len(self._decoded) :]
        if len(self._tokens) - self._from > 2 * _N_CONTEXT:
            self._from = len(self._tokens) - _N_CONTEXT
            window = self.tokenizer.decode(self._tokens[self._from :])
        self._decoded = window
        return self._release(new)

    def close(self) -> str:
        """Give what was held back: the text is over."""
        if self.stopped:
            return ""
        rest = self._release(self.tokenizer.decode(self._tokens[self._from :])[len(self._decoded) :])
        rest, self._held = rest + self._held, ""
        self.n_tokens = len(self._tokens)
        return rest

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max((_n_begun(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - n_held :]
        if not n_held:
            self.n_tokens = len(self._tokens)
        return text[: len(text) - n_held]


def _n_begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
