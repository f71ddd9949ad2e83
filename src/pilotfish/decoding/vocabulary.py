"""Vocabularies of different models: whether they are one, and which tokens they share."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from scipy.sparse import csr_array

from pilotfish.errors import InputError
from pilotfish.protocols import IntArray, Tokenizer

__all__ = ["SortedTokens", "VocabularyMap", "same_vocabulary"]


def same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same numbers to the same tokens; padding at the end may differ."""
    return one is other or list(one.tokens) == list(other.tokens)


class VocabularyMap:
    """What the tokens of one vocabulary say about those of another.

    A token of the source is a stretch of bytes with which the text goes on. The target would begin that stretch with
    the longest token of its own that the stretch begins with; or, since the text may go on the same way past the
    stretch, with one of those longer tokens that have no nearer source token than this one. Among these the source's
    probability is shared by how common they are, which vocabularies made by merging tell by the order of their tokens:
    the nth is about 1/n as frequent as the first (Zipf's law).

    Parameters
    ----------
    source, target : Tokenizer
        From the first vocabulary to the second.

    Attributes
    ----------
    exact : ndarray of int, (n_target,)
        The source's token of the same bytes; -1 where there is none.
    shares : scipy.sparse.csr_array of float32, (n_target, n_source)
        What part of a source token's probability each target token has; columns of tokens with bytes add up to 1.
    n_shared : int
        How many tokens both have, end tokens left out.
    """

    _made: ClassVar[WeakKeyDictionary[Tokenizer, WeakKeyDictionary[Tokenizer, VocabularyMap]]] = WeakKeyDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, source: Tokenizer, target: Tokenizer) -> None:
        self.source, self.target = _numbers(source), _numbers(target)
        self.exact: IntArray = np.full(target.n_vocabulary, -1, dtype=np.int64)
        pairs = []
        for token, i in self.target.items():
            self.exact[i] = self.source.get(token, -1)
            if self.exact[i] < 0 and (own := _beginning(token, self.source)):
                pairs.append((i, self.source[own]))
        for token, i in self.source.items():
            if begun := _beginning(token, self.target):
                pairs.append((self.target[begun], i))
        self.n_shared = int((self.exact >= 0).sum())
        rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        weights = 1.0 / (1.0 + rows)
        totals = np.bincount(columns, weights, minlength=source.n_vocabulary)
        weights /= totals[columns]
        inner = [end for end in sorted(target.end_tokens) if end < target.n_vocabulary]
        ends = [(i, j) for i in inner for j in sorted(source.end_tokens) if j < source.n_vocabulary]
        if ends:
            self.exact[inner] = min(source.end_tokens)
            rows, columns = (
                np.append(old, new) for old, new in zip((rows, columns), zip(*ends, strict=True), strict=True)
            )
            weights = np.append(weights, np.full(len(ends), 1.0 / len(inner)))
        shape = (target.n_vocabulary, source.n_vocabulary)
        self.shares = csr_array((weights.astype(np.float32), (rows, columns)), shape=shape)

    @classmethod
    def between(cls, source: Tokenizer, target: Tokenizer) -> VocabularyMap:
        """The map between two tokenizers, made once.

        Raises
        ------
        InputError
            When they share no token.
        """
        with cls._lock:
            of_source = cls._made.setdefault(source, WeakKeyDictionary())
            if target not in of_source:
                of_source[target] = cls(source, target)
            made = of_source[target]
        if not made.n_shared:
            raise InputError("The two vocabularies share no token: give models whose tokens are text of the same kind.")
        return made

    def beginning(self, text: bytes) -> int:
        """The target's longest token that a text begins with; -1 where there is none."""
        found = _beginning(text, self.target)
        return self.target[found] if found else -1


class SortedTokens:
    """The tokens of a vocabulary in the order of their bytes: those that begin alike stand together.

    Parameters
    ----------
    tokenizer : Tokenizer
        Whose tokens.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> found = SortedTokens(SimpleNamespace(tokens=[b"b", b"ab", b"a", b"abc", b""]))
    >>> found.beginning_with(b"ab").tolist()
    [1, 3]
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        pairs = sorted((token, i) for i, token in enumerate(tokenizer.tokens) if token)
        self._tokens = [token for token, _ in pairs]
        self._numbers: IntArray = np.array([i for _, i in pairs], dtype=np.int64)

    def beginning_with(self, text: bytes) -> IntArray:
        """The tokens that begin with these bytes, which must not be none, in the order of their bytes."""
        low = bisect_left(self._tokens, text)
        # No token goes on with 0xff for as long as this.
        high = bisect_left(self._tokens, text + b"\xff" * 64, lo=low)
        found: IntArray = self._numbers[low:high]
        return found


def _numbers(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Number of each token by its bytes; the first where several are alike."""
    return {token: i for i, token in reversed(list(enumerate(tokenizer.tokens))) if token}


def _beginning(text: bytes, known: Mapping[bytes, int]) -> bytes:
    """The longest known token that a text begins with; nothing where there is none."""
    return next((text[:n] for n in range(len(text), 0, -1) if text[:n] in known), b"")
