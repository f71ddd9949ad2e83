"""Cascades: GSM8K with the weak answer seen, LLM judges in a row, and heads trained for the cascade they stand in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run, bootstrap
from benchmarks.outcomes import STRONG, WEAK, gsm8k, interval
from pilotfish.route.policies import CascadePolicy
from pilotfish.scorers.agreement import Agreement
from pilotfish.scorers.answers import AnswerQuality, ExpectedWork
from pilotfish.traffic.table import ReplyTable

_SHARES = (0.7, 0.1, 0.2)


def main(run: Run) -> None:
    if run.wants("gsm8k"):
        answers_seen(run)
    if run.wants("judges"):
        judges(run)
    if run.wants("heads"):
        from benchmarks.cascade_heads import heads

        heads(run)
    if run.wants("live"):
        from benchmarks.live_table import live

        live(run)


def _recovered_by_cost(policy: CascadePolicy, test: ReplyTable, scores: NDArray[np.float64]) -> float:
    """APGR over cost: the weak answer, its witnesses and the strong answer are all paid; only-strong is cost 1."""
    weak, strong = test.column(WEAK), test.column(STRONG)
    low, high = float(test.costs[:, weak].mean()), float(test.costs[:, strong].mean())
    start, end = float(test.scores[:, weak].mean()), float(test.scores[:, strong].mean())
    order = np.argsort(scores, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum((test.scores[:, strong] - test.scores[:, weak])[order])]) / test.n_queries
    paid = np.concatenate([[0.0], np.cumsum(test.costs[order, strong])]) / test.n_queries
    witnesses = sum(float(test.costs[:, test.column(name)].mean()) for name in policy.samples_of)
    share = (paid + witnesses) / (high - low)
    recovered = gained / (end - start)
    grid = np.linspace(0, 1, 1001)
    return float(np.trapezoid(np.interp(grid, np.append([0.0], share), np.append([0.0], recovered)), grid))


def answers_seen(run: Run) -> None:
    """Score the weak answer by its arithmetic, its form, what such a question usually takes, and a 6B model's answer."""
    table = gsm8k(run)
    solved = list(run.rows("gsm8k/train.jsonl.gz"))[: 2000 if run.quick else 7473]
    work = ExpectedWork().fit([row["question"] for row in solved], [row["answer"] for row in solved])
    kinds = {
        "verifier and 6B agreement": lambda: CascadePolicy(
            "both", (WEAK, STRONG), (AnswerQuality(work.describe),), gain=True, samples_of=("gpt3-6b",)
        ),
        "verifier": lambda: CascadePolicy("verifier", (WEAK, STRONG), (AnswerQuality(work.describe),), gain=True),
        "6B agreement": lambda: CascadePolicy("agree", (WEAK, STRONG), (Agreement(),), samples_of=("gpt3-6b",)),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    seeds = range(2 if run.quick else 5)
    for seed in seeds:
        fit, _, test = table.split(_SHARES, seed=seed)
        for name, make in kinds.items():
            policy = make().fit(fit)
            found[name].append(_recovered_by_cost(policy, test, policy.stage_scores(test)[:, 0]))
    for name, values in found.items():
        print(f"GSM8K {name:28s} APGR over cost {np.mean(values):.3f}  {np.round(values, 3)}")
    values = found["verifier and 6B agreement"]
    low, high = interval(values)
    run.figure(
        "gsm8k_apgr",
        float(np.mean(values)),
        unit="APGR, all costs counted",
        better="higher",
        low=low,
        high=high,
        n=round(table.n_queries * _SHARES[2]),
        seeds=len(values),
        peer="RouteLLM (arXiv:2406.18665), before generation",
        peer_value=0.622,
        peer_source="published",
        verifier_alone=float(np.mean(found["verifier"])),
        target=0.80,
    )


_CHEAP = ("ChatGPT", "LLaMA2", "PaLM2")
_BEST = "GPT-4"
_STRATEGY = "Metrics_Reference"


def judges(run: Run) -> None:
    """Three cheap judges, asked in both orders, then the best one; pairs of all subsets."""
    pairs = {(row["subset"], row["i"]): row for row in run.rows("llmbar/pairs.jsonl.gz")}
    verdicts: dict[str, dict[tuple[str, int], dict[str, object]]] = {}
    for row in run.rows("llmbar/judgements.jsonl.gz"):
        if row["strategy"] == _STRATEGY:
            verdicts.setdefault(row["judge"], {})[row["subset"], row["i"]] = row
    keys = [key for key in pairs if all(key in verdicts[judge] for judge in (*_CHEAP, _BEST))]
    texts = [str(pairs[key]["input"]) for key in keys]
    gold = np.array([int(pairs[key]["label"]) == 1 for key in keys], dtype=np.float64)
    cheap = np.array(
        [[float(str(verdicts[j][k][w]) == "1") for j in _CHEAP for w in ("winner", "winner_swapped")] for k in keys]
    )
    best = np.array([float(str(verdicts[_BEST][key]["winner"]) == "1") for key in keys])
    features = np.column_stack([cheap, cheap.mean(axis=1), [_pair_form(pairs[key]) for key in keys]])
    table = ReplyTable.of([f"{i} {t}" for i, t in enumerate(texts)], {"best": best == gold}, {"best": 1.0})
    place = {query: i for i, query in enumerate(table.queries)}
    shares, reached, alone, first = [], [], [], []
    seeds = range(5 if run.quick else 20)
    for seed in seeds:
        fit, calibrate, test = (
            np.array([place[q] for q in p.queries]) for p in table.split((0.6, 0.2, 0.2), seed=seed)
        )
        chance = _combined(features[fit], gold[fit], features)
        sure, said = np.abs(chance - 0.5), chance >= 0.5
        goal = float((best[calibrate] == gold[calibrate]).mean())
        threshold = float("inf")
        for at in np.quantile(sure[fit], np.linspace(1, 0, 101)):
            answer = np.where(sure[calibrate] >= at, said[calibrate], best[calibrate])
            if (answer == gold[calibrate]).mean() >= goal:
                threshold = float(at)
        answer = np.where(sure[test] >= threshold, said[test], best[test])
        shares.append(float((sure[test] < threshold).mean()))
        reached.append(float((answer == gold[test]).mean()))
        alone.append(float((best[test] == gold[test]).mean()))
        first.append(float((said[test] == gold[test]).mean()))
    print(f"judges: cascade {np.mean(reached):.3f}, best judge {np.mean(alone):.3f}, cheap ones {np.mean(first):.3f}")
    low, high = interval(shares)
    run.figure(
        "llmbar_calls_share",
        float(np.mean(shares)),
        unit="share of the best judge's calls",
        better="lower",
        low=low,
        high=high,
        n=len(keys),
        seeds=len(shares),
        accuracy=float(np.mean(reached)),
        best_judge=float(np.mean(alone)),
        cheap_judges=float(np.mean(first)),
        target=0.50,
    )


def _pair_form(pair: dict[str, object]) -> list[float]:
    asked, one, two = (str(pair[name]) for name in ("input", "output_1", "output_2"))
    words = [set(text.lower().split()) for text in (asked, one, two)]
    shared = [len(words[0] & w) / (len(words[0]) + 1) for w in words[1:]]
    return [
        np.log1p(len(asked)),
        np.log1p(len(one)) - np.log1p(len(two)),
        abs(np.log1p(len(one)) - np.log1p(len(two))),
        shared[0] - shared[1],
        len(words[1] & words[2]) / (len(words[1] | words[2]) + 1),
        float("?" in asked),
        float(one.count("\n") - two.count("\n")),
        float(one.count("!") - two.count("!")),
    ]


def _combined(x: NDArray[np.float64], y: NDArray[np.float64], everything: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    line = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(x, y)
    trees = RandomForestClassifier(200, min_samples_leaf=5, max_features=0.3, random_state=0).fit(x, y)
    return np.asarray((line.predict_proba(everything)[:, 1] + trees.predict_proba(everything)[:, 1]) / 2)


__all__ = ["answers_seen", "bootstrap", "judges", "main"]
