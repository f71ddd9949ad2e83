"""Cascades: GSM8K with the weak answer seen, LLM judges in a row, and heads trained for the cascade they stand in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run
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
        from benchmarks.cascade_judges import judges

        judges(run)
    if run.wants("heads"):
        from benchmarks.cascade_heads import heads

        heads(run)
    from benchmarks.live_table import PAIRS, live

    named = [name for name in PAIRS if name in run.only]
    if run.wants("live") or named:
        live(run, named or list(PAIRS))


def _recovered_by_cost(
    policy: CascadePolicy, test: ReplyTable, scores: NDArray[np.float64], by_length: bool = False
) -> float:
    """APGR over cost: the weak answer, its witnesses and the strong answer are all paid; strong alone costs 1.

    A strong call costs its mean price, as in call shares, or, ``by_length``, what that very answer cost.
    """
    weak, strong = test.column(WEAK), test.column(STRONG)
    low, high = float(test.costs[:, weak].mean()), float(test.costs[:, strong].mean())
    start, end = float(test.scores[:, weak].mean()), float(test.scores[:, strong].mean())
    order = np.argsort(scores, kind="stable")
    dollars = test.costs[order, strong] if by_length else np.full(order.size, high)
    gained = np.concatenate([[0.0], np.cumsum((test.scores[:, strong] - test.scores[:, weak])[order])]) / test.n_queries
    paid = np.concatenate([[0.0], np.cumsum(dollars)]) / test.n_queries
    witnesses = sum(float(test.costs[:, test.column(name)].mean()) for name in policy.samples_of)
    share = (paid + witnesses) / (high - low)
    recovered = gained / (end - start)
    grid = np.linspace(0, 1, 1001)
    return float(np.trapezoid(np.interp(grid, np.append([0.0], share), np.append([0.0], recovered)), grid))


def answers_seen(run: Run) -> None:
    """Score the weak answer by its arithmetic, its form, what such questions usually take, and a 6B model's answer."""
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
    exact: dict[str, list[float]] = {}
    seeds = range(2 if run.quick else 5)
    for seed in seeds:
        fit, _, test = table.split(_SHARES, seed=seed)
        for name, make in kinds.items():
            policy = make().fit(fit)
            scores = policy.stage_scores(test)[:, 0]
            found[name].append(_recovered_by_cost(policy, test, scores))
            exact.setdefault(name, []).append(_recovered_by_cost(policy, test, scores, by_length=True))
    for name, values in found.items():
        print(f"GSM8K {name:28s} APGR over cost {np.mean(values):.3f}, by length {np.mean(exact[name]):.3f}")
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
        by_answer_length=float(np.mean(exact["verifier and 6B agreement"])),
        note="features explored on splits of the same questions",
        target=0.80,
    )
