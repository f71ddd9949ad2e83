"""The few interfaces that every part implements. A collaboration of models is a model; score, then decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pilotfish.types import Reply, Request

__all__ = [
    "Decision",
    "Embedder",
    "FeatureKind",
    "FloatArray",
    "IntArray",
    "LogProbs",
    "Logits",
    "Model",
    "Progress",
    "PromptKind",
    "Rule",
    "Scorer",
    "Session",
    "Tokenizer",
    "Transform",
    "TreeSession",
    "WhiteBoxModel",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
LogProbs = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Told how much is done, and of how much."""
FeatureKind = Literal["encoder", "large", "language", "static", "ngrams"]
PromptKind = Literal["words", "static", "encoder", "language"]
T_contra = TypeVar("T_contra", contravariant=True)
A_contra = TypeVar("A_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)


@runtime_checkable
class Model(Protocol):
    """Anything that answers."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order; an empty batch gives an empty list."""
        ...


class Tokenizer(Protocol):
    """What turns text into the tokens of one model and back."""

    @property
    def n_vocabulary(self) -> int:
        """How many tokens the model gives a probability; padding of its last layer included."""
        ...

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a reply."""
        ...

    @property
    def tokens(self) -> Sequence[bytes]:
        """The bytes of each token (at most n_vocabulary); special tokens have none."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without special tokens."""
        ...

    def encode_request(self, request: Request) -> list[int]:
        """The tokens of a conversation up to where the reply begins."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; special tokens have none."""
        ...


class Logits(Protocol):
    """What a model expects next at n positions; worked out only as far as it is asked for."""

    def best(self) -> IntArray:
        """The likeliest token at each position, (n,)."""
        ...

    def log_probs(self) -> LogProbs:
        """Natural log-probabilities, (n, n_vocabulary)."""
        ...


class Session(Protocol):
    """A model in the middle of one text, its state kept."""

    @property
    def n_tokens(self) -> int:
        """How many tokens it has read."""
        ...

    def extend(self, tokens: Sequence[int], n_last: int | None = None) -> Logits:
        """Read further tokens, and tell what is expected after each of the last ``n_last`` of them (all: None)."""
        ...

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens."""
        ...

    def fork(self) -> Session:
        """Copy the state; the copy and the original go on apart."""
        ...


@runtime_checkable
class TreeSession(Protocol):
    """A session that can read several continuations side by side."""

    @property
    def takes_trees(self) -> bool:
        """Whether its model can."""
        ...

    def extend_tree(self, tokens: Sequence[int], branches: Sequence[int], parents: Sequence[int]) -> Logits:
        """Read further tokens and a tree after them, and tell what is expected after the text and each of its tokens.

        ``parents`` has for each token of the tree the place of the one it follows, before its own; -1 for the text.
        """
        ...

    def keep(self, n: int, places: Sequence[int]) -> None:
        """Of the last ``n`` tokens, the tree, keep those at these places, which follow one another."""
        ...


class WhiteBoxModel(Protocol):
    """Anything whose distribution we can see."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    @property
    def window(self) -> int:
        """The longest text it can read, in tokens."""
        ...

    def session(self) -> Session:
        """Begin a text."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns text into vectors."""

    @property
    def n_dimensions(self) -> int:
        """Length of each vector."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed a batch as an array (n, n_dimensions) of unit vectors."""
        ...


class Scorer(Protocol[T_contra]):
    """Anything that gives each item a number; higher is better, the unit is stated by the part."""

    def score(self, items: Sequence[T_contra]) -> FloatArray:
        """Score a batch as an array (n,)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What a rule chose.

    Parameters
    ----------
    indices : ndarray of int, (k,)
        The chosen items.
    weights : ndarray of float, (k,)
        Their weights; ones unless the rule weighs.
    """

    indices: IntArray
    weights: FloatArray


class Rule(Protocol):
    """Anything that turns scores into a choice."""

    def decide(self, scores: FloatArray) -> Decision:
        """Choose among n items by their scores (n,)."""
        ...


class Transform(Protocol[A_contra, B_co]):
    """Anything that turns items into items, lazily."""

    def __call__(self, items: Iterable[A_contra]) -> Iterator[B_co]:
        """Yield the transformed items."""
        ...
