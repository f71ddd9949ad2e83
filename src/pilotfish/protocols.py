"""The few interfaces that every part implements. A collaboration of models is a model; score, then decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pilotfish.types import Reply, Request

__all__ = ["Decision", "Embedder", "FloatArray", "IntArray", "Model", "Rule", "Scorer", "Transform"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
T_contra = TypeVar("T_contra", contravariant=True)
A_contra = TypeVar("A_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)


@runtime_checkable
class Model(Protocol):
    """Anything that answers."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order; an empty batch gives an empty list."""
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
