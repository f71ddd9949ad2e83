"""What every student is: a small model fitted on a large model's answers, which says how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.protocols import FloatArray, Progress

__all__ = ["Predicted", "Student"]


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """A batch of predictions.

    Parameters
    ----------
    labels : list of str
        The answers, in the surface form the large model uses, n of them.
    confidence : array (n,)
        Probability in [0, 1] that the large model (or gold, where the student learned from gold) says the same.
    familiar : array of bool (n,)
        Whether the text looks like those learned from; where not, the confidence is not to be trusted.
    """

    labels: list[str]
    confidence: FloatArray
    familiar: NDArray[np.bool_]


class Student(Protocol):
    """A small model that learns to answer one task's calls."""

    @property
    def known(self) -> frozenset[str]:
        """The answers it can give, in the form in which answers are compared."""
        ...

    def fit(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        gold: Sequence[str | None] | None = None,
        drawn: Sequence[bool] | None = None,
        instruction: str = "",
        progress: Progress | None = None,
    ) -> Self:
        """Learn from texts and the large model's answers to say what it says; with ``gold``, to say what is right.

        ``drawn`` says which calls were drawn at random, so that the confidence is true of all calls and not only of
        those that an earlier student left to the large model. ``instruction`` is what the large model is told.
        ``progress`` is told how many texts were read of how many, where that takes long.
        """
        ...

    def predict(self, texts: Sequence[str]) -> Predicted:
        """Answer a batch of texts."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything needed to predict into an existing folder; the same fit gives the same bytes."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a saved student."""
        ...
