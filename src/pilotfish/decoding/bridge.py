"""A model of one vocabulary seen as if it had another: what cross-vocabulary fusion is made of."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import numpy as np

from pilotfish.decoding.fusion import normalised
from pilotfish.decoding.vocabulary import SortedTokens, VocabularyMap, same_vocabulary
from pilotfish.models.sessions import ArrayLogits, n_common
from pilotfish.protocols import LogProbs, Tokenizer, WhiteBoxModel

__all__ = ["PROMPT", "Bridged", "BridgedSession", "in_vocabulary"]

PROMPT = -1
"""Stands for the model's own prompt at the head of the tokens that a bridged session reads."""
_N_OPENED = 2
_NEGLIGIBLE = 1e-4
_LEAST = 1e-26
_N_KEPT = 24
"""Rows of log-probabilities that a session keeps: as far back as drafts are taken back, with some to spare."""


def in_vocabulary(model: WhiteBoxModel, tokenizer: Tokenizer) -> WhiteBoxModel:
    """The model itself where it has the tokenizer's vocabulary, else the model bridged to it."""
    return model if same_vocabulary(model.tokenizer, tokenizer) else Bridged(model, tokenizer)


class Bridged:
    """A white-box model in another model's vocabulary.

    The text so far is read in the model's own tokens, and what it expects is shared out among the tokens of the other
    vocabulary (:class:`VocabularyMap`). The text may end within what the model would write as one token, such as
    "tum" of "tumor": the tokens that begin with the text's last own tokens and go on are counted as well, each for
    what it goes on with. In the middle of a character the model says nothing: every token is as likely.

    Parameters
    ----------
    model : WhiteBoxModel
        The model.
    tokenizer : Tokenizer
        Of the other vocabulary.

    References
    ----------
    Phan et al., arXiv:2410.09303: a text's probability is that of all tokens that cover its end. Here only
    the last two own tokens are opened.
    """

    def __init__(self, model: WhiteBoxModel, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._sorted: SortedTokens | None = None

    @property
    def window(self) -> int:
        """The longest text it can read, in its own tokens."""
        return self.model.window

    def session(self, prompt: Sequence[int] = ()) -> BridgedSession:
        """Begin a text; ``prompt``, in the model's own tokens, comes before it."""
        self._sorted = self._sorted or SortedTokens(self.model.tokenizer)
        return BridgedSession(self.model, self.tokenizer, self._sorted, prompt)


class BridgedSession:
    """The session of a bridged model.

    Parameters
    ----------
    model : WhiteBoxModel
        The model.
    tokenizer : Tokenizer
        Of the tokens that are read.
    known : SortedTokens
        Of the model.
    prompt : sequence of int
        Own tokens before the text.
    """

    def __init__(
        self, model: WhiteBoxModel, tokenizer: Tokenizer, known: SortedTokens, prompt: Sequence[int] = ()
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = list(prompt) or sorted(model.tokenizer.end_tokens)[:1]
        self._known = known
        self._map = VocabularyMap.between(model.tokenizer, tokenizer)
        self._session = model.session()
        self._own: list[int] = []
        self._rows: dict[int, LogProbs] = {}
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
            self._follow(longest, sorted({n for i in together for n in self._opened(own[i])}))
            for i in [*together, *sorted(set(own) - set(together))]:
                values[i] = self._expected(own[i])
        for n in sorted(self._rows)[:-_N_KEPT]:
            del self._rows[n]
        return ArrayLogits(normalised(values))

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens; the own tokens follow at the next reading."""
        del self._read[len(self._read) - n :]

    def fork(self) -> BridgedSession:
        """Copy the state."""
        twin = BridgedSession(self.model, self.tokenizer, self._known, self.prompt)
        twin._session, twin._own, twin._read = self._session.fork(), list(self._own), list(self._read)
        twin._rows = dict(self._rows)
        return twin

    def _encoded(self, text: bytes) -> list[int] | None:
        """The model's own tokens of a text, after its prompt or what begins a text; None in mid-character."""
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        said = decoder.decode(text)
        if decoder.getstate()[0]:
            return None
        return [*self.prompt, *self.model.tokenizer.encode(said)]

    def _opened(self, own: Sequence[int]) -> list[int]:
        """Lengths of the text, in own tokens, after which it may be told otherwise, and its whole length."""
        return list(range(max(1, len(self.prompt), len(own) - _N_OPENED), len(own) + 1))

    def _follow(self, wanted: Sequence[int], ends: Sequence[int]) -> None:
        """Have the rows of what is expected after so many of the wanted own tokens."""
        n = n_common(self._own, wanted)
        missing = [end for end in ends if end > n or end not in self._rows]
        if not missing:
            return
        n, last = min(n, missing[0] - 1), ends[-1]
        self._session.rewind(len(self._own) - n)
        logs = self._session.extend(wanted[n:last], last - missing[0] + 1).log_probs()
        self._rows = {end: row for end, row in self._rows.items() if end <= n}
        self._rows |= {missing[0] + i: row for i, row in enumerate(logs)}
        self._own = list(wanted[:last])

    def _expected(self, own: list[int]) -> LogProbs:
        """Log-probabilities of the other vocabulary's tokens after the own tokens, (n_vocabulary,)."""
        ends = self._opened(own)
        self._follow(own, ends)
        # The probability of the last own tokens, given those before the first that is opened.
        steps = [float(self._rows[end][own[end]]) for end in ends[:-1]]
        going_on = np.exp(self._rows[len(own)].astype(np.float64) + sum(steps))
        apart = np.zeros(self.tokenizer.n_vocabulary)
        least = _NEGLIGIBLE * np.exp(sum(steps))
        for i, end in enumerate(ends[:-1]):
            said = b"".join(self.model.tokenizer.tokens[token] for token in own[end:])
            if not said:
                continue
            found = self._known.beginning_with(said)
            chances = np.exp(self._rows[end][found].astype(np.float64) + sum(steps[:i]))
            for token in found[chances > max(least, _NEGLIGIBLE * float(chances.sum()))].tolist():
                rest = self.model.tokenizer.tokens[token][len(said) :]
                chance = float(np.exp(self._rows[end][token] + sum(steps[:i])))
                if (same := self._map.source.get(rest)) is not None:
                    going_on[same] += chance
                elif rest and (begun := self._map.beginning(rest)) >= 0:
                    apart[begun] += chance
        total = self._map.shares @ going_on + apart
        logs: LogProbs = np.log(np.maximum(total / total.sum(), _LEAST)).astype(np.float32)
        return logs
