"""A model of one vocabulary seen as if it had another: what cross-vocabulary fusion is made of."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence

import numpy as np

from pilotfish.decoding.vocabulary import SortedTokens, VocabularyMap, same_vocabulary
from pilotfish.models.sessions import ArrayLogits, n_common
from pilotfish.protocols import LogProbs, Tokenizer, TreeSession, WhiteBoxModel

__all__ = ["PROMPT", "Bridged", "BridgedSession", "in_vocabulary"]

PROMPT = -1
"""Stands for the model's own prompt at the head of the tokens that a bridged session reads."""
_N_OPENED = 2
_NEGLIGIBLE = 1e-4
_LEAST = 1e-26
_IMPOSSIBLE = -60.0
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
        self._own: tuple[int, ...] = ()
        self._rows: dict[tuple[int, ...], LogProbs] = {}
        self._read: list[int] = []

    @property
    def n_tokens(self) -> int:
        """How many tokens it has read."""
        return len(self._read)

    def extend(self, tokens: Sequence[int], n_last: int | None = None) -> ArrayLogits:
        """Read further tokens, and tell what is expected after each of the last ``n_last`` of them.

        What is said after a token does not depend on what was read with it: where the own tokens of the text up to
        there are no beginning of those of the whole, they are read beside them.
        """
        self._read.extend(tokens)
        pieces = [b"" if token < 0 else self.tokenizer.tokens[token] for token in self._read]
        ends = np.cumsum([len(piece) for piece in pieces])[-(n_last or len(tokens)) :]
        whole = b"".join(pieces)
        own = {i: found for i, end in enumerate(ends.tolist()) if (found := self._encoded(whole[:end])) is not None}
        self._follow(list(own.values()))
        n_vocabulary = self.tokenizer.n_vocabulary
        values = np.full((ends.size, n_vocabulary), -np.log(n_vocabulary), dtype=np.float32)
        for i, tokens_so_far in own.items():
            values[i] = self._expected(tokens_so_far)
        for key in list(self._rows)[:-_N_KEPT]:
            del self._rows[key]
        return ArrayLogits(values)

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens; the own tokens follow at the next reading."""
        del self._read[len(self._read) - n :]

    def fork(self) -> BridgedSession:
        """Copy the state."""
        twin = BridgedSession(self.model, self.tokenizer, self._known, self.prompt)
        twin._session, twin._own, twin._read = self._session.fork(), self._own, list(self._read)
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

    def _follow(self, texts: Sequence[list[int]]) -> None:
        """Have the rows of what is expected after every opened end of some texts: in one pass, as a tree, if it can be.

        The last text is the longest; the session goes on from there.
        """
        wanted = dict.fromkeys(tuple(own[:end]) for own in reversed(texts) for end in reversed(self._opened(own)))
        missing = [key for key in wanted if key not in self._rows]
        if not missing:
            return
        if not (isinstance(self._session, TreeSession) and self._session.takes_trees):
            for key in reversed(missing):
                n = min(n_common(self._own, key), len(key) - 1)
                self._session.rewind(len(self._own) - n)
                self._rows[key] = self._session.extend(key[n:], 1).log_probs()[0]
                self._own = key
            return
        shared = min(n_common(missing[0], key) for key in missing)
        n = min(n_common(self._own, missing[0]), shared - 1)
        self._session.rewind(len(self._own) - n)
        places: dict[tuple[int, ...], int] = {missing[0][:shared]: -1}
        for key in missing:
            for end in range(shared + 1, len(key) + 1):
                places.setdefault(key[:end], len(places) - 1)
        branches = list(places)[1:]
        rows = self._session.extend_tree(
            missing[0][n:shared], [key[-1] for key in branches], [places[key[:-1]] for key in branches]
        ).log_probs()
        self._session.keep(len(branches), [places[missing[0][:end]] for end in range(shared + 1, len(missing[0]) + 1)])
        self._own = missing[0]
        for key in reversed(missing):
            self._rows[key] = rows[places[key] + 1].copy()

    def _expected(self, own: list[int]) -> LogProbs:
        """Log-probabilities of the other vocabulary's tokens after the own tokens, (n_vocabulary,)."""
        ends = self._opened(own)
        rows = {end: self._rows[tuple(own[:end])] for end in ends}
        # The probability of the last own tokens, given those before the first that is opened.
        steps = [max(float(rows[end][own[end]]), _IMPOSSIBLE) for end in ends[:-1]]
        ended = sum(steps)
        same: list[tuple[int, float]] = []
        apart: list[tuple[int, float]] = []
        least = _NEGLIGIBLE * np.exp(ended)
        for i, end in enumerate(ends[:-1]):
            said = b"".join(self.model.tokenizer.tokens[token] for token in own[end:])
            if not said:
                continue
            found = self._known.beginning_with(said)
            logs = rows[end][found].astype(np.float64) + sum(steps[:i])
            chances = np.exp(logs)
            kept = chances > max(least, _NEGLIGIBLE * float(chances.sum()))
            for token, log in zip(found[kept].tolist(), logs[kept].tolist(), strict=True):
                rest = self.model.tokenizer.tokens[token][len(said) :]
                if (own_token := self._map.source.get(rest)) is not None:
                    same.append((own_token, log))
                elif rest and (begun := self._map.beginning(rest)) >= 0:
                    apart.append((begun, log))
        # In single precision, relative to the likeliest, so that nothing of weight is lost.
        top = max([ended, *(log for _, log in (*same, *apart))])
        going_on = np.exp(rows[len(own)] + np.float32(ended - top))
        for own_token, log in same:
            going_on[own_token] += math.exp(log - top)
        total = self._map.shares @ going_on
        for begun, log in apart:
            total[begun] += math.exp(log - top)
        expected: LogProbs = np.log(np.maximum(total / total.sum(), np.float32(_LEAST)))
        return expected
