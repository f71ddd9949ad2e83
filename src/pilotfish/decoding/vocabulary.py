"""Vocabularies of different models: whether they are one, and which tokens they share."""

from __future__ import annotations

import threading
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from pilotfish.errors import InputError
from pilotfish.protocols import IntArray, Tokenizer

__all__ = ["VocabularyMap", "same_vocabulary"]


def same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same numbers to the same tokens; padding at the end may differ."""
    return one is other or list(one.tokens) == list(other.tokens)


class VocabularyMap:
    """For each token of one vocabulary, the tokens of another that stand for it.

    Parameters
    ----------
    source, target : Tokenizer
        From the first vocabulary to the second.

    Attributes
    ----------
    exact : ndarray of int, (n_target,)
        The source's token of the same bytes; -1 where there is none.
    first : ndarray of int, (n_target,)
        The source's longest token that begins the target's token; -1 where there is none.
    n_shared : int
        How many tokens both have, end tokens left out.
    """

    _made: ClassVar[WeakKeyDictionary[Tokenizer, WeakKeyDictionary[Tokenizer, VocabularyMap]]] = WeakKeyDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, source: Tokenizer, target: Tokenizer) -> None:
        known = {token: i for i, token in reversed(list(enumerate(source.tokens))) if token}
        self.exact: IntArray = np.full(target.n_vocabulary, -1, dtype=np.int64)
        self.first: IntArray = self.exact.copy()
        longest = max((len(token) for token in known), default=0)
        for i, token in enumerate(target.tokens):
            if not token:
                continue
            self.exact[i] = known.get(token, -1)
            for n in range(min(len(token), longest), 0, -1):
                if (found := known.get(token[:n])) is not None:
                    self.first[i] = found
                    break
        self.n_shared = int((self.exact >= 0).sum())
        for end in target.end_tokens:
            if source.end_tokens and end < target.n_vocabulary:
                self.exact[end] = self.first[end] = min(source.end_tokens)

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
