"""Panels of cheap judges on recorded verdicts: accuracy, order bias, and bounds from a few gold labels."""

from __future__ import annotations

import numpy as np

from benchmarks.figures import Run
from pilotfish.protocols import FloatArray
from pilotfish.scorers.judges import JudgePanel, win_rate
from pilotfish.statistics import mean_interval

DEAR = "GPT-4"
N_GOLD = 50
DELTA = 0.05


def main(run: Run) -> None:
    if run.wants("panel"):
        panel(run)
    if run.wants("ranking"):
        ranking(run)


def _verdicts(run: Run, adversarial: bool) -> tuple[FloatArray, FloatArray, list[str], list[str]]:
    """For the first answer, in both orders (n, n_judges, 2), gold (n,), judges and the subset of each pair."""
    rows = [r for r in run.rows("llmbar/judgements.jsonl.gz") if not adversarial or "Adversarial" in r["subset"]]
    rows = [r for r in rows if r["judge"] != DEAR]
    items = sorted({(r["subset"], r["i"]) for r in rows})
    n_seen: dict[str, int] = {}
    for r in rows:
        n_seen[f"{r['judge']}/{r['strategy']}"] = n_seen.get(f"{r['judge']}/{r['strategy']}", 0) + 1
    judges = sorted(name for name, n in n_seen.items() if n == len(items))
    at, column = {key: i for i, key in enumerate(items)}, {name: k for k, name in enumerate(judges)}
    found, gold = np.full((len(items), len(judges), 2), np.nan), np.empty(len(items))
    for r in rows:
        i, k = at[r["subset"], r["i"]], column.get(f"{r['judge']}/{r['strategy']}")
        gold[i] = float(r["label"] == 1)
        if k is not None:
            for side, name in enumerate(("winner", "winner_swapped")):
                if r[name] is not None:
                    found[i, k, side] = float(r[name] == "1")
    return found, gold, judges, [subset for subset, _ in items]


def _joined(found: FloatArray) -> FloatArray:
    counted = np.isfinite(found)
    return np.where(counted.any(axis=2), np.nansum(found, axis=2) / np.maximum(counted.sum(axis=2), 1), 0.5)


def _accuracy(chance: FloatArray, gold: FloatArray) -> float:
    return float(np.where(np.abs(chance - 0.5) < 1e-9, 0.5, (chance > 0.5) == gold).mean())


def panel(run: Run) -> None:
    """The panel, taught by 50 gold labels, against every single cheap judge, on the adversarial sets."""
    found, gold, judges, subsets = _verdicts(run, adversarial=True)
    joined = _joined(found)
    seeds = range(10 if run.quick else 50)
    single = np.array([_accuracy(joined[:, k], gold) for k in range(len(judges))])
    best = int(single.argmax())
    either = np.maximum(single, 1 - single)
    first = np.nan_to_num((found[..., 0] == gold[:, None]).mean(axis=0))
    rows, by_set, gains, majority = [], {s: [] for s in sorted(set(subsets))}, [], []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(gold.size)
        learn, test = order[:N_GOLD], order[N_GOLD:]
        made = JudgePanel().fit(joined, learn, gold[learn]).predict(joined)
        rows.append(_accuracy(made[test], gold[test]))
        gains.append(rows[-1] - _accuracy(joined[test, best], gold[test]))
        majority.append(_accuracy(joined[test].mean(axis=1), gold[test]))
        for subset, values in by_set.items():
            at = [i for i in test if subsets[i] == subset]
            values.append(_accuracy(made[at], gold[at]))
    gold_only = max(gold.mean(), 1 - gold.mean())
    swapped = 1 - found[:, :, ::-1]
    made = JudgePanel().fit(joined, np.arange(N_GOLD), gold[:N_GOLD])
    mirrored = made.predict(_joined(swapped))
    order_bias = float(np.abs(made.predict(joined) + mirrored - 1).max())
    print(f"{len(judges)} cheap judges (a model with a prompt), {gold.size} adversarial pairs, {N_GOLD} gold labels")
    print(
        f"best single cheap judge: {judges[best]} {single[best]:.3f} both orders, {first[best]:.3f} first order alone"
    )
    print(f"best single, turned round where it is mostly wrong: {judges[int(either.argmax())]} {either.max():.3f}")
    print(f"majority of all {np.mean(majority):.3f}; always one place {gold_only:.3f}; panel {np.mean(rows):.3f}")
    for subset, values in by_set.items():
        print(f"  {subset:32s} {np.mean(values):.3f}")
    print(f"largest change of the panel's verdict by swapping the order: {order_bias:.1e}")
    gain = mean_interval(np.array(gains) * 100)
    run.figure(
        "panel_gain_points",
        gain.value,
        unit="points of accuracy over the best single cheap judge",
        better="higher",
        n=gold.size - N_GOLD,
        seeds=len(seeds),
        low=gain.low,
        high=gain.high,
        panel=float(np.mean(rows)),
        peer=f"best single: {judges[best]}, chosen on the pairs it is scored on",
        peer_value=float(single[best]),
        peer_source="measured",
        best_turned_round=float(either.max()),
        majority=float(np.mean(majority)),
        gold_labels=N_GOLD,
        order_bias=order_bias,
        target=5.0,
    )


def ranking(run: Run) -> None:
    """Win rates from the panel and 50 gold labels: how wide the bounds are, and how often they are broken."""
    found, gold, _, _ = _verdicts(run, adversarial=False)
    joined = _joined(found)
    seeds = range(20 if run.quick else 200)
    truth, half, broken, error = float(gold.mean()), [], 0, []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(gold.size)
        rows, learn = order[:N_GOLD], order[N_GOLD // 2 : N_GOLD]
        # Half of the labels teach the panel; the bound rests on the other half, which it has not seen.
        made = JudgePanel().fit(joined, learn, gold[learn]).predict(joined)
        rest = np.setdiff1d(np.arange(gold.size), learn)
        at = {int(i): k for k, i in enumerate(rest)}
        test = rows[: N_GOLD // 2]
        bound = win_rate(made[rest], np.array([at[int(i)] for i in test]), gold[test], DELTA)
        broken += not bound.low <= truth <= bound.high
        half.append((bound.high - bound.low) / 2)
        error.append(abs(bound.value - truth))
    print(f"win rate of the first system {truth:.3f}: error {np.mean(error):.3f}, bound +-{np.mean(half):.3f}")
    run.figure(
        "ranking_bound_violations",
        broken / len(seeds),
        unit="share of seeds",
        better="lower",
        n=gold.size,
        seeds=len(seeds),
        mean_error=float(np.mean(error)),
        mean_half_width=float(np.mean(half)),
        gold_labels=N_GOLD,
        target=DELTA,
    )
