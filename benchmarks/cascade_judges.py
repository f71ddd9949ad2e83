"""A cascade of judges on LLMBar: cheap judges first, the best one where they are unsure, settings chosen inside."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run
from benchmarks.outcomes import interval
from pilotfish.protocols import FloatArray

_BEST = "GPT-4"
_TEST_SHARE = 0.2
_N_FOLDS = 5
# What the inner cross-validation chooses among: regularisation, whether the form of the two answers is read besides the
# verdicts, and the share of pairs that go on to the best judge.
_STRENGTHS = (0.003, 0.01, 0.03, 0.1)
_BUDGETS = (0.30, 0.35, 0.40, 0.45)


def judges(run: Run) -> None:
    """Each test fifth is judged with settings that cross-validation chose on the other four."""
    rows = _measured(run, 5 if run.quick else 20, "LLMBar")
    both = _measured(run, 2 if run.quick else 5, "")
    (share, reached, alone, first), (low, high) = rows.mean(axis=0), interval(rows[:, 0].tolist())
    gain_low, gain_high = interval((rows[:, 1] - rows[:, 2]).tolist())
    print(f"judges: cascade {reached:.3f}, best judge {alone:.3f}, cheap ones {first:.3f}, at {share:.1%} of its calls")
    print(f"with the pairs of other sets too: cascade {both[:, 1].mean():.3f}, best judge {both[:, 2].mean():.3f}")
    run.figure(
        "llmbar_calls_share",
        share,
        unit="share of the best judge's calls",
        better="lower",
        note="settings chosen by cross-validation within each split's other pairs",
        low=low,
        high=high,
        n=419,
        seeds=len(rows),
        accuracy=reached,
        best_judge=alone,
        gain_low=gain_low,
        gain_high=gain_high,
        cheap_judges=first,
        with_other_sets={
            name: float(value)
            for name, value in zip(("calls_share", "accuracy", "best_judge"), both.mean(axis=0), strict=False)
        },
        target=0.50,
    )


def _measured(run: Run, n_seeds: int, subset: str) -> FloatArray:
    """Share of calls, accuracy of cascade, best judge and cheap judges, a row per split, on subsets that start so."""
    pairs = {(r["subset"], str(r["i"])): r for r in run.rows("llmbar/pairs.jsonl.gz") if r["subset"].startswith(subset)}
    keys = list(pairs)
    verdicts: dict[tuple[str, str], dict[tuple[str, str], dict[str, object]]] = {}
    for row in run.rows("llmbar/judgements.jsonl.gz"):
        verdicts.setdefault((row["judge"], row["strategy"]), {})[row["subset"], str(row["i"])] = row
    whole = [name for name, found in verdicts.items() if all(key in found for key in keys)]

    def votes(chosen: list[tuple[str, str]]) -> FloatArray:
        """Verdicts (n, prompts, 2 orders): 1 for the first answer, -1 for the second, 0 for neither."""
        sides, orders = {"1": 1.0, "2": -1.0}, ("winner", "winner_swapped")
        of = [verdicts[name] for name in chosen]
        return np.array([[[sides.get(str(v[key][w]), 0.0) for w in orders] for v in of] for key in keys])

    cheap = votes([name for name in whole if name[0] != _BEST]).reshape(len(keys), -1)
    form = np.array([_difference(pairs[key]) for key in keys])
    best = votes([name for name in whole if name[0] == _BEST])
    gold = np.array([1.0 if str(pairs[key]["label"]) == "1" else -1.0 for key in keys])
    rows = []
    for seed in range(n_seeds):
        order = np.random.default_rng(seed).permutation(len(keys))
        n_test = round(_TEST_SHARE * len(keys))
        test, known = order[:n_test], order[n_test:]
        prompt = int((best[known] == gold[known, None, None]).mean(axis=(0, 2)).argmax())
        right = (best[:, prompt] == gold[:, None]).mean(axis=1)
        x, strength, threshold = _chosen([cheap, np.hstack([cheap, form])], gold, right, known)
        chance = _first_is_better(x[known], gold[known], x[test], strength)
        by_cheap = np.sign(chance - 0.5 + 1e-12) == gold[test]
        goes_on = np.abs(chance - 0.5) < threshold
        rows.append(
            (goes_on.mean(), np.where(goes_on, right[test], by_cheap).mean(), right[test].mean(), by_cheap.mean())
        )
    return np.array(rows)


def _chosen(
    readings: list[FloatArray], gold: FloatArray, right: FloatArray, known: NDArray[np.int64]
) -> tuple[FloatArray, float, float]:
    """Reading of the pairs, regularisation and threshold best on held-out folds; among equals, of fewest calls."""
    fold = np.arange(known.size) % _N_FOLDS
    found = []
    for number, strength in product(range(len(readings)), _STRENGTHS):
        x = readings[number]
        chance = np.empty(known.size)
        for k in range(_N_FOLDS):
            learned, held = known[fold != k], known[fold == k]
            chance[fold == k] = _first_is_better(x[learned], gold[learned], x[held], strength)
        by_cheap = np.sign(chance - 0.5 + 1e-12) == gold[known]
        for budget in _BUDGETS:
            threshold = float(np.quantile(np.abs(chance - 0.5), budget))
            goes_on = np.abs(chance - 0.5) < threshold
            reached = float(np.where(goes_on, right[known], by_cheap).mean())
            found.append((reached, -budget, number, strength, threshold))
    _, _, number, strength, threshold = max(found)
    return readings[number], strength, threshold


def _difference(pair: dict[str, object]) -> list[float]:
    """How the first answer's form differs from the second's; swapping the two flips every sign."""
    asked, one, two = (str(pair[name]) for name in ("input", "output_1", "output_2"))
    words = [set(text.lower().split()) for text in (asked, one, two)]
    overlap = [len(words[0] & w) / (len(w) + 1) for w in words[1:]]
    return [
        float(np.log1p(len(one)) - np.log1p(len(two))),
        4 * (overlap[0] - overlap[1]),
        float(np.tanh(one.count("\n") - two.count("\n"))),
        float(np.tanh(one.count("!") - two.count("!"))),
    ]


def _first_is_better(x: FloatArray, gold: FloatArray, asked: FloatArray, strength: float) -> FloatArray:
    """Chance that the first answer is better, by a logistic regression that treats both orders alike."""
    from sklearn.linear_model import LogisticRegression

    both, labels = np.vstack([x, -x]), np.concatenate([gold > 0, gold < 0])
    line = LogisticRegression(C=strength, fit_intercept=False, max_iter=3000).fit(both, labels)
    return np.asarray(line.predict_proba(asked)[:, 1])
