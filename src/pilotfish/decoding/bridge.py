"""A model of one vocabulary seen as if it had another: what cross-vocabulary fusion is made of."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import numpy as np

from pilotfish.decoding.fusion import normalised
from pilotfish.decoding.vocabulary import VocabularyMap, same_vocabulary
from pilotfish.models.sessions import ArrayLogits, n_common
from pilotfish.protocols import LogProbs, Tokenizer, WhiteBoxModel

__all__ = ["PROMPT", "Bridged", "BridgedSession", "in_vocabulary"]

PROMPT = -1
"""Stands for the model's own prompt at the head of the tokens that a bridged session reads."""


def in_vocabulary(model: WhiteBoxModel, tokenizer: Tokenizer) -> WhiteBoxModel:
    """The model itself where it has the tokenizer's vocabulary, else the model bridged to it."""
    return model if same_vocabulary(model.tokenizer, tokenizer) else Bridged(model, tokenizer)


class Bridged:
    """A white-box model in another model's vocabulary.

    The text so far is read in the model's own tokens. A token of the other vocabulary has the probability of the own
    token of the same bytes, or else that of the longest own token it begins with. In the middle of a character the
    model says nothing: every token is as likely.

    Parameters
    ----------
    model : WhiteBoxModel
        The model.
    tokenizer : Tokenizer
        Of the other vocabulary.
    """

    def __init__(self, model: WhiteBoxModel, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @property
    def window(self) -> int:
        """The longest text it can read, in its own tokens."""
        return self.model.window

    def session(self, prompt: Sequence[int] = ()) -> BridgedSession:
        """Begin a text; ``prompt``, in the model's own tokens, comes before it."""
        return BridgedSession(self.model, self.tokenizer, prompt)


class BridgedSession:
    """The session of a bridged model.

    Parameters
    ----------
    model : WhiteBoxModel
        The model.
    tokenizer : Tokenizer
        Of the tokens that are read.
    prompt : sequence of int
        Own tokens before the text.
    """

    def __init__(self, model: WhiteBoxModel, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = list(prompt)
        found = VocabularyMap.between(model.tokenizer, tokenizer)
        self._from = np.where(found.exact >= 0, found.exact, found.first)
        self._session = model.session()
        self._own: list[int] = []
        self._read: list[int] = []

    @property
    def n_tokens(self) -> int:
        """How many tokens it has read."""
        return len(self._read)

    def extend(self, tokens: Sequence[int], n_last: int | None = None) -> ArrayLogits:
        """Read further tokens, and tell what is expected after each of the last ``n_last`` of them.

        What is said after a token does not depend on what was read with it: where the own tokens of the text up to
        there are no beginning of those of the whole, they are read by themselves.
        """
        self._read.extend(tokens)
        pieces = [b"" if token < 0 else self.tokenizer.tokens[token] for token in self._read]
        ends = np.cumsum([len(piece) for piece in pieces])[-(n_last or len(tokens)) :]
        whole = b"".join(pieces)
        own = {i: found for i, end in enumerate(ends.tolist()) if (found := self._encoded(whole[:end])) is not None}
        n_vocabulary = self.tokenizer.n_vocabulary
        values = np.full((ends.size, n_vocabulary), -np.log(n_vocabulary), dtype=np.float32)
        if own:
            longest = own[max(own)]
            together = [i for i, part in own.items() if longest[: len(part)] == part]
            first = min(len(own[i]) for i in together) - 1
            logs = self._follow(longest, first)
            values[together] = self._mapped(logs[[len(own[i]) - 1 - first for i in together]])
            for i in sorted(set(own) - set(together)):
                values[i] = self._mapped(self._follow(own[i], len(own[i]) - 1))[0]
        return ArrayLogits(values)

    def _encoded(self, text: bytes) -> list[int] | None:
        """The model's own tokens of a text, after its prompt or what begins a text; None in mid-character."""
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        said = decoder.decode(text)
        if decoder.getstate()[0]:
            return None
        return [*(self.prompt or sorted(self.model.tokenizer.end_tokens)[:1]), *self.model.tokenizer.encode(said)]

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens; the own tokens follow at the next reading."""
        del self._read[len(self._read) - n :]

    def fork(self) -> BridgedSession:
        """Copy the state."""
        twin = BridgedSession(self.model, self.tokenizer, self.prompt)
        twin._session, twin._own, twin._read = self._session.fork(), list(self._own), list(self._read)
        return twin

    def _follow(self, wanted: list[int], first: int) -> LogProbs:
        """Log-probabilities after each own token from number ``first`` on."""
        n = min(n_common(self._own, wanted), first)
        self._session.rewind(len(self._own) - n)
        self._own = wanted
        return self._session.extend(wanted[n:], len(wanted) - first).log_probs()

    def _mapped(self, logs: LogProbs) -> LogProbs:
        values = logs[:, np.maximum(self._from, 0)]
        values[:, self._from < 0] = -60.0
        return normalised(values)
