"""Compare two systems on the same prompts, by metrics and judges, with intervals and honest baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pilotfish.errors import InputError
from pilotfish.evaluate import Outputs
from pilotfish.protocols import FloatArray, Scorer
from pilotfish.scorers.judges import JudgePanel, PairJudge
from pilotfish.scorers.reference import Length
from pilotfish.statistics import Interval, PairedTest, mean_interval, paired_test
from pilotfish.types import Exchange

__all__ = ["Comparison", "compare_outputs"]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two systems on the same prompts.

    Parameters
    ----------
    tests : dict of str to PairedTest
        By metric: the first system minus the second, higher is better; ``judge`` counts from 0.5.
    n : int
        Prompts both answered.
    n_left_out : dict of str to int
        Prompts without a score of both, by metric.
    level : float
        Confidence of the intervals.
    differences : dict of str to ndarray (n,)
        By metric: the first output's score minus the second's, NaN where one is missing.
    pairs : list of (str, Exchange, Exchange)
        The ids and outputs they belong to.
    agreement : dict of str to Interval
        By metric, the length among them: share of the pairs that people judged on which it prefers the same output, a
        tie for half; empty where people judged none.
    n_alone : tuple of two ints
        Outputs of the first and of the second without a partner.
    n_other_prompts : int
        Pairs whose outputs answer different prompts.
    """

    tests: dict[str, PairedTest]
    n: int
    n_left_out: dict[str, int]
    level: float
    differences: dict[str, FloatArray] = field(default_factory=dict)
    pairs: list[tuple[str, Exchange, Exchange]] = field(default_factory=list)
    agreement: dict[str, Interval] = field(default_factory=dict)
    n_alone: tuple[int, int] = (0, 0)
    n_other_prompts: int = 0

    def warnings(self) -> list[str]:
        """What makes the comparison another one than may have been meant, a sentence each."""
        said = []
        if any(self.n_alone):
            first, second = self.n_alone
            said.append(f"{first} outputs of the first and {second} of the second have no partner and are left out.")
        if self.n_other_prompts:
            said.append(
                f"{self.n_other_prompts} of {self.n} pairs answer different prompts: make sure that the ids, or the "
                "order where there are none, are the same in both files."
            )
        return said

    def verdict(self, name: str) -> str:
        """Say in words what one metric shows: a difference where both the interval and the test do."""
        found, p_value = self.tests[name].difference, self.tests[name].p_value
        if p_value > 1 - self.level or found.low <= 0 <= found.high:
            return "no difference shown"
        return f"{'first' if found.value > 0 else 'second'} is {'longer' if name == 'length' else 'better'}"


def _preferred(first: Outputs, second: Outputs, pairs: Sequence[tuple[int, int]]) -> FloatArray:
    """1 where people found the first output better, 0 where worse, NaN where they said nothing of it, (n_pairs,)."""
    out = np.full(len(pairs), np.nan)
    for row, (i, j) in enumerate(pairs):
        for known in ("human", "labels"):
            gap = getattr(first, known)[i] - getattr(second, known)[j]
            if np.isfinite(gap) and gap != 0:
                out[row] = float(gap > 0)
                break
    return out


_LEAST_GOLD = 10


def compare_outputs(
    first: Outputs,
    second: Outputs,
    scorers: Mapping[str, Scorer[Exchange]],
    judges: Sequence[PairJudge] = (),
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two systems' outputs, paired by id, with the length of the outputs beside every metric.

    Parameters
    ----------
    first, second : Outputs
        Outputs of the two systems to the same prompts.
    scorers : mapping of str to Scorer of Exchange
        Metrics of single outputs.
    judges : sequence of PairJudge
        Judges of pairs; the mean of their preferences is the metric ``judge``. Where there are several, and at least 10
        pairs whose human scores or labels differ, those pairs teach a :class:`~pilotfish.scorers.judges.JudgePanel`
        how much each judge counts, and its preferences on all other pairs are the metric ``panel``.
    level : float
        Confidence of the intervals.

    Raises
    ------
    InputError
        When the two share no id, or no pair has a score.
    """
    at = {name: i for i, name in enumerate(second.ids)}
    pairs = [(i, at[name]) for i, name in enumerate(first.ids) if name in at]
    if not pairs:
        raise InputError("The two files share no 'id': give both the same ids, or none and the same order.")
    a, b = [first.items[i] for i, _ in pairs], [second.items[j] for _, j in pairs]
    found: dict[str, tuple[FloatArray, FloatArray]] = {
        name: (scorer.score(a), scorer.score(b)) for name, scorer in {**scorers, "length": Length()}.items()
    }
    gold = _preferred(first, second, pairs)
    if judges:
        verdicts = np.array([judge.compare(a, b) for judge in judges])
        counted = np.isfinite(verdicts)
        mean = np.where(counted, verdicts, 0).sum(axis=0) / np.where(counted.any(axis=0), counted.sum(axis=0), np.nan)
        found["judge"] = (mean, np.full(len(pairs), 0.5))
        known = np.flatnonzero(np.isfinite(gold) & counted.any(axis=0))
        if len(judges) > 1 and known.size >= _LEAST_GOLD:
            panel = JudgePanel().fit(verdicts.T, known, gold[known])
            joined = panel.predict(verdicts.T)
            # What the panel has learned from is no test of the two systems.
            joined[known] = np.nan
            found["panel"] = (np.where(counted.any(axis=0), joined, np.nan), np.full(len(pairs), 0.5))
    tests, left_out, differences, agreement = {}, {}, {}, {}
    for name, (x, y) in found.items():
        both = np.isfinite(x) & np.isfinite(y)
        left_out[name] = int((~both).sum())
        if both.any():
            tests[name] = paired_test(x[both], y[both], level, seed=seed)
            differences[name] = np.where(both, x - y, np.nan)
        if (both & np.isfinite(gold)).any():
            same = 0.5 + np.sign(x - y) * (gold - 0.5)
            agreement[name] = mean_interval(same[both & np.isfinite(gold)], level, seed=seed)
    if set(tests) == {"length"} and found.keys() != {"length"}:
        raise InputError("No pair has a score of both outputs: check the references, or that the judge answers.")
    outputs = [(first.ids[i], x, y) for (i, _), x, y in zip(pairs, a, b, strict=True)]
    asked = [(x.request.prompt, y.request.prompt) for x, y in zip(a, b, strict=True)]
    n_alone = len(first.ids) - len(pairs), len(second.ids) - len(pairs)
    n_other = sum(bool(p and q and p != q) for p, q in asked)
    return Comparison(tests, len(pairs), left_out, level, differences, outputs, agreement, n_alone, n_other)
