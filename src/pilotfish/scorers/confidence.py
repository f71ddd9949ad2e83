"""How sure an answer is: scores as probabilities of being right, learned from labelled answers and kept in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.errors import InputError
from pilotfish.files import ArrayFile, read_arrays, write_arrays
from pilotfish.protocols import FloatArray, Scorer
from pilotfish.scorers.calibration import Calibrator, IsotonicCalibration, PlattCalibration
from pilotfish.types import Exchange

__all__ = [
    "FEWEST_LABELS",
    "Confidence",
    "calibrator_for",
    "confident",
    "fit_calibrators",
    "load_calibrators",
    "save_calibrators",
]

_KINDS: dict[str, type[IsotonicCalibration] | type[PlattCalibration]] = {
    kind.__name__: kind for kind in (IsotonicCalibration, PlattCalibration)
}
_MANY_LABELS, FEWEST_LABELS = 200, 40


class Confidence:
    """A scorer's scores as probabilities of being right; an answer that it cannot score stays NaN.

    Parameters
    ----------
    scorer : Scorer of Exchange
        Scores answers.
    calibrator : Calibrator
        Learned from that scorer's scores of labelled answers.

    Examples
    --------
    >>> from pilotfish.scorers.reference import Length
    >>> from pilotfish.types import Reply, Request
    >>> line = IsotonicCalibration().fit(np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 1]))
    >>> Confidence(Length(), line).score([Exchange(Request.of("hi"), Reply("an answer that is longer"))])
    array([1.])
    """

    def __init__(self, scorer: Scorer[Exchange], calibrator: Calibrator) -> None:
        self.scorer = scorer
        self.calibrator = calibrator

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Probability that each answer is right, (n,)."""
        found = np.asarray(self.scorer.score(items), dtype=np.float64)
        known = np.isfinite(found)
        out = np.full(found.shape, np.nan)
        if known.any():
            out[known] = self.calibrator.predict(found[known])
        return out


def calibrator_for(n_labels: int) -> IsotonicCalibration | PlattCalibration:
    """The calibration that so many labels carry: isotonic from 200 on, else Platt's two numbers."""
    return IsotonicCalibration() if n_labels >= _MANY_LABELS else PlattCalibration()


def fit_calibrators(scores: Mapping[str, FloatArray], labels: FloatArray) -> dict[str, Calibrator]:
    """Learn what each metric's scores say of being right.

    Parameters
    ----------
    scores : mapping of str to ndarray (n,)
        By metric; NaN where an answer has no score.
    labels : ndarray (n,)
        1 right, 0 wrong, NaN where unknown. A metric with fewer than 40 labelled scores, or those of one class only, is
        left out.

    Raises
    ------
    InputError
        When that leaves no metric.
    """
    made: dict[str, Calibrator] = {}
    for name, found in scores.items():
        known = np.isfinite(found) & np.isfinite(labels)
        if known.sum() >= FEWEST_LABELS and 0 < labels[known].sum() < known.sum():
            made[name] = calibrator_for(int(known.sum())).fit(found[known], labels[known])
    if not made:
        raise InputError(f"No metric has {FEWEST_LABELS} scores with labels of both kinds: label more outputs.")
    return made


def save_calibrators(path: str | Path, calibrators: Mapping[str, Calibrator]) -> None:
    """Save calibrations by metric as one npz archive, without pickle."""
    arrays: dict[str, Any] = {}
    for name, made in calibrators.items():
        kind = type(made).__name__
        if kind not in _KINDS or not isinstance(made, ArrayFile):
            raise InputError(f"The calibration of {name!r} is a {kind}: save one of {', '.join(_KINDS)}.")
        arrays |= {f"{kind} {key} {name}": array for key, array in made.to_arrays().items()}
    write_arrays(path, arrays)


def load_calibrators(path: str | Path) -> dict[str, Calibrator]:
    """Load what :func:`save_calibrators` wrote.

    Raises
    ------
    InputError
        When the file is something else.
    """
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    with read_arrays(path, "calibration") as file:
        for place in file:
            kind, key, name = place.split(" ", 2)
            if key not in _KINDS[kind]._learned:
                raise KeyError(place)
            parts.setdefault((kind, name), {})[key] = file[place]
        made: dict[str, Calibrator] = {name: _KINDS[kind].from_arrays(arrays) for (kind, name), arrays in parts.items()}
    if not made:
        raise InputError(f"{path} holds no calibration: learn one with 'pilotfish evaluate --learn-confidence'.")
    return made


def confident(scorers: Mapping[str, Scorer[Exchange]], path: str | Path) -> dict[str, Scorer[Exchange]]:
    """Turn metrics into probabilities of being right, by calibrations that :func:`save_calibrators` wrote.

    Raises
    ------
    InputError
        When the file is something else, or lacks a metric.
    """
    known = load_calibrators(path)
    missing = sorted(set(scorers) - set(known))
    if missing:
        raise InputError(f"{path} has no calibration of {missing[0]!r}: it holds {', '.join(known)}.")
    return {name: Confidence(scorer, known[name]) for name, scorer in scorers.items()}
