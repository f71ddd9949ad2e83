"""Forecasting a model's task scores from the others': leave one model out of nine."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.figures import Run
from pilotfish.protocols import FloatArray
from pilotfish.scorers.forecasting import ProxyLM, leave_one_out, task_similarity, text_features

PROXIES = ("llama-3.1-8b-instruct", "qwen2.5-7b-instruct")
# What model cards usually state.
STATED = ("arc_challenge", "gsm8k", "human_eval", "mmlu")
N_PAID = (5, 20)


def main(run: Run) -> None:
    rows = [r for part in ("train", "test") for r in run.rows(f"llmrouter9/{part}.jsonl.gz")]
    about = json.loads((run.data / "llmrouter9/default_llm.json").read_text())
    models, tasks = sorted(rows[0]["scores"]), sorted({r["task_name"] for r in rows})
    by_task = {t: [r for r in rows if r["task_name"] == t] for t in tasks}
    scores = np.array([[np.mean([r["scores"][m] for r in by_task[t]]) for t in tasks] for m in models])
    data = np.array([text_features([r["query"] for r in by_task[t]]) for t in tasks])
    alike = task_similarity([[r["query"] for r in by_task[t]] for t in tasks], [by_task[t][0]["metric"] for t in tasks])
    cards = {m: [float(np.log10(float(about[m]["size"][:-1])))] for m in models}
    held = [i for i, m in enumerate(models) if m not in PROXIES]
    left = [j for j, t in enumerate(tasks) if t not in STATED]
    at = np.ix_(held, left)

    def rmse(predicted: FloatArray) -> float:
        return float(np.sqrt(np.mean((predicted - scores)[at] ** 2)))

    def others(i: int) -> list[int]:
        return [k for k in range(len(models)) if k != i]

    nearest = [min(others(i), key=lambda k: abs(cards[models[k]][0] - cards[m][0])) for i, m in enumerate(models)]
    n_seeds = 3 if run.quick else 10
    paid = {n: _paid(scores, models, tasks, data, cards, alike, by_task, at, n, n_seeds) for n in N_PAID}
    found = {
        "size alone": rmse(leave_one_out(scores, models, tasks, data, PROXIES, cards, (), alike)),
        "size and stated scores": rmse(leave_one_out(scores, models, tasks, data, PROXIES, cards, STATED, alike)),
        **{f"and {n} paid answers a task": value for n, value in paid.items()},
        "baseline: mean of the others, by task": rmse(np.array([scores[others(i)].mean(axis=0) for i in range(9)])),
        "baseline: mean of the others, all tasks": rmse(
            np.array([np.full(len(tasks), scores[others(i)].mean()) for i in range(9)])
        ),
        "baseline: nearest model in size": rmse(scores[nearest]),
    }
    for name, value in found.items():
        print(f"RMSE {value:.4f}  {name}")
    mean, near = found["baseline: mean of the others, by task"], found["baseline: nearest model in size"]
    ours = found["size and stated scores"]
    common = {"unit": "times lower", "better": "higher", "n": len(held) * len(left), "target": 2.0}
    run.figure(
        "rmse_ratio",
        min(mean, near) / ours,
        peer="the better of mean by task and nearest model",
        peer_value=min(mean, near),
        peer_source="measured",
        rmse=ours,
        against_mean=mean / ours,
        against_nearest=near / ours,
        stated=list(STATED),
        proxies=list(PROXIES),
        **common,
    )
    for n_paid, value in paid.items():
        run.figure(
            f"rmse_ratio_with_{n_paid}_paid_answers", min(mean, near) / value, rmse=value, seeds=n_seeds, **common
        )


def _paid(
    scores: FloatArray,
    models: list[str],
    tasks: list[str],
    data: FloatArray,
    cards: dict[str, list[float]],
    alike: FloatArray,
    by_task: dict[str, list[dict[str, dict[str, float]]]],
    at: tuple[FloatArray, ...],
    n_paid: int,
    n_seeds: int,
) -> float:
    """RMSE where a few random answers of the model on every task have been paid for as well."""
    predicted = np.repeat(scores[None], n_seeds, axis=0)
    for i, model in enumerate(models):
        if model in PROXIES:
            continue
        rest = [k for k in range(len(models)) if k != i]
        made = ProxyLM().fit(scores[rest], [models[k] for k in rest], tasks, data, PROXIES, cards, alike)
        stated = {t: float(scores[i, tasks.index(t)]) for t in STATED}
        for seed in range(n_seeds):
            rng, seen = np.random.default_rng([seed, i]), {}
            for task in tasks:
                if task not in STATED:
                    chosen = rng.choice(len(by_task[task]), n_paid, replace=False)
                    seen[task] = float(np.mean([by_task[task][int(k)]["scores"][model] for k in chosen]))
            predicted[seed, i] = made.predict(cards[model], stated | seen, dict.fromkeys(seen, n_paid))
    return float(np.sqrt(np.mean([((one - scores)[at] ** 2).mean() for one in predicted])))
