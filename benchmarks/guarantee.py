"""What can be certified on MMLU: the share kept from the strong model, and how often the certificate is broken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run
from benchmarks.outcomes import interval, mmlu
from benchmarks.routers.readers import have_embedders, read_by
from pilotfish.bounds import empirical_bernstein_upper
from pilotfish.route.certify import loss_p_value
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.traffic.table import ReplyTable

_DELTA = 0.05
_LEVELS = (0.02, 0.04)
_SHARES = np.linspace(0.02, 0.98, 49)


def main(run: Run) -> None:
    if not have_embedders():
        return
    table = mmlu(run)
    if run.wants("share"):
        shares(run, table)
    if run.wants("violations"):
        violations(run, table)
    if run.wants("groups"):
        held_out_groups(run, table)


def _gaps(run: Run, fit: ReplyTable, *parts: ReplyTable) -> list[NDArray[np.float64]]:
    """Predicted score of the weak model minus the strong one's, learned on ``fit``."""
    scorer = KernelQuality(read_by("static" if run.quick else "encoder")).fit(fit.queries, fit.scores, fit.models)
    predicted = [scorer.predict(part.queries) for part in parts]
    return [p[:, 0] - p[:, 1] for p in predicted]


def certified(
    gap: NDArray[np.float64], loss: NDArray[np.float64], level: float, thresholds: NDArray[np.float64], seed: int
) -> float:
    """Least threshold on the gap certified to lose at most ``level``; from few kept to many, to the first failure."""
    chosen = float("inf")
    for at in thresholds:
        if loss_p_value(np.where(gap >= at, loss, 0.0), level, 1.0, _DELTA, seed) > _DELTA:
            break
        chosen = float(at)
    return chosen


def shares(run: Run, table: ReplyTable) -> None:
    """Share kept at 2 and 4 points: fitted on half, certified on 30 %, measured on 20 %."""
    kept: dict[float, list[float]] = {level: [] for level in _LEVELS}
    naive: dict[float, list[float]] = {level: [] for level in _LEVELS}
    lost: dict[float, list[float]] = {level: [] for level in _LEVELS}
    for seed in range(2 if run.quick else 5):
        fit, calibrate, test = table.split((0.5, 0.3, 0.2), seed=seed)
        own, gap, tested = _gaps(run, fit, fit, calibrate, test)
        thresholds = np.quantile(own, 1 - _SHARES)
        loss = calibrate.scores[:, 1] - calibrate.scores[:, 0]
        for level in _LEVELS:
            at = certified(gap, loss, level, thresholds, seed)
            to_weak = tested >= at
            kept[level].append(float(to_weak.mean()))
            lost[level].append(float(((test.scores[:, 1] - test.scores[:, 0]) * to_weak).mean()))
            plain = float("inf")
            for threshold in thresholds:
                hit = np.where(gap >= threshold, loss, 0.0)
                if 2 * empirical_bernstein_upper((hit + 1) / 2, _DELTA) - 1 > level:
                    break
                plain = float(threshold)
            naive[level].append(float((tested >= plain).mean()))
    for level, figure, target in ((0.02, "weak_share_2pt", 0.30), (0.04, "weak_share_4pt", 0.52)):
        low, high = interval(kept[level])
        print(f"{level:.0%} of loss: kept {np.mean(kept[level]):.1%}, lost on test {np.mean(lost[level]):.2%}")
        run.figure(
            figure,
            float(np.mean(kept[level])),
            unit="share answered by the weak model",
            better="higher",
            low=low,
            high=high,
            n=2808,
            seeds=len(kept[level]),
            peer="empirical Bernstein, same router",
            peer_value=float(np.mean(naive[level])),
            peer_source="measured",
            loss_on_test=float(np.mean(lost[level])),
            target=target,
        )


def violations(run: Run, table: ReplyTable) -> None:
    """How often the certificate is broken over 1,000 calibration sets from a population whose loss is known."""
    fit, rest = table.split((0.4, 0.6), seed=0)
    own, gap = _gaps(run, fit, fit, rest)
    loss = rest.scores[:, 1] - rest.scores[:, 0]
    thresholds = np.quantile(own, 1 - _SHARES)
    n_splits = 100 if run.quick else 1000
    broken, kept = [], []
    for seed in range(n_splits):
        drawn = np.random.default_rng(seed).integers(0, loss.size, 2000)
        at = certified(gap[drawn], loss[drawn], 0.04, thresholds, seed)
        broken.append(float(np.where(gap >= at, loss, 0.0).mean() > 0.04))
        kept.append(float((gap >= at).mean()))
    run.figure(
        "violations",
        float(np.mean(broken)),
        unit="share of splits",
        better="lower",
        n=n_splits,
        seeds=n_splits,
        level=0.04,
        delta=_DELTA,
        calibration_queries=2000,
        mean_share_kept=float(np.mean(kept)),
        target=0.05,
    )


def held_out_groups(run: Run, table: ReplyTable) -> None:
    """The same with whole subjects held out: fitted and certified on some subjects, measured on others."""
    subjects = np.array(sorted(set(table.groups)))
    group = np.array(table.groups)
    n_fits, n_splits = (4, 25) if run.quick else (10, 100)
    broken, kept, per_query = [], [], []
    for round_ in range(n_fits):
        rng = np.random.default_rng(round_)
        order = rng.permutation(subjects)
        fit = table.subset(np.flatnonzero(np.isin(group, order[:17])))
        rest = table.subset(np.flatnonzero(np.isin(group, order[17:])))
        own, gap = _gaps(run, fit, fit, rest)
        loss = rest.scores[:, 1] - rest.scores[:, 0]
        names, member = np.unique(np.array(rest.groups), return_inverse=True)
        thresholds = np.quantile(own, 1 - _SHARES)
        for split in range(n_splits):
            shuffled = np.random.default_rng(1000 * round_ + split).permutation(names.size)
            calibrating = np.isin(member, shuffled[:20])
            at = _certified_by_group(gap[calibrating], loss[calibrating], member[calibrating], 0.04, thresholds, split)
            hit = np.where(gap[~calibrating] >= at, loss[~calibrating], 0.0)
            broken.append(float(_group_means(hit, member[~calibrating]).mean() > 0.04))
            kept.append(float((gap[~calibrating] >= at).mean()))
            plain = certified(gap[calibrating], loss[calibrating], 0.04, thresholds, split)
            hit = np.where(gap[~calibrating] >= plain, loss[~calibrating], 0.0)
            per_query.append(float(_group_means(hit, member[~calibrating]).mean() > 0.04))
    run.figure(
        "violations_heldout_subjects",
        float(np.mean(broken)),
        unit="share of splits",
        better="lower",
        n=len(broken),
        seeds=n_fits * n_splits,
        level=0.04,
        delta=_DELTA,
        calibration_subjects=20,
        test_subjects=20,
        mean_share_kept=float(np.mean(kept)),
        bound_per_query=float(np.mean(per_query)),
        target=0.05,
    )


def _group_means(values: NDArray[np.float64], member: NDArray[np.int64]) -> NDArray[np.float64]:
    names, at = np.unique(member, return_inverse=True)
    return np.asarray(np.bincount(at, values) / np.bincount(at, minlength=names.size))


def _certified_by_group(
    gap: NDArray[np.float64],
    loss: NDArray[np.float64],
    member: NDArray[np.int64],
    level: float,
    thresholds: NDArray[np.float64],
    seed: int,
) -> float:
    """As :func:`certified`, a subject being one observation."""
    chosen = float("inf")
    for at in thresholds:
        if loss_p_value(_group_means(np.where(gap >= at, loss, 0.0), member), level, 1.0, _DELTA, seed) > _DELTA:
            break
        chosen = float(at)
    return chosen
