"""Reply tables of the shared outcome sets, and splits in which no query text is shared."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run
from pilotfish.traffic.table import ReplyTable

WEAK, STRONG = "mixtral-8x7b", "gpt-4-1106"
_RAW = {WEAK: "mistralai/Mixtral-8x7B-Instruct-v0.1", STRONG: "gpt-4-1106-preview"}
# Dollars per million tokens read and written, as published when the outcomes were recorded.
PRICES = {WEAK: (0.24, 0.24), STRONG: (10.0, 30.0), "gpt3-6b": (0.1, 0.1)}
_CHARACTERS_PER_TOKEN = 4


def dollars(model: str, prompt: str, reply: str) -> float:
    """Price of an answer by its length in characters."""
    read, written = PRICES[model]
    return (len(prompt) * read + len(reply) * written) / _CHARACTERS_PER_TOKEN / 1e6


def mmlu(run: Run) -> ReplyTable:
    """MMLU with whether each model was right; groups are subjects."""
    rows = list(run.rows("routellm/mmlu_outcomes.jsonl.gz"))
    prompts = [row["prompt"] for row in rows]
    return ReplyTable.of(
        prompts,
        {model: [float(row[raw]) for row in rows] for model, raw in _RAW.items()},
        {model: [dollars(model, p, "A") for p in prompts] for model in _RAW},
        groups=[row["subject"] for row in rows],
    )


def gsm8k(run: Run) -> ReplyTable:
    """GSM8K with both replies, and one recorded solution of a fine-tuned 6B model as a cheap witness."""
    rows = list(run.rows("routellm/gsm8k_outcomes.jsonl.gz"))
    solved = {row["question"]: row["6b_finetuning"] for row in run.rows("gsm8k/gpt3_6b_175b_solutions.jsonl.gz")}
    rows = [row for row in rows if row["prompt"] in solved]
    prompts = [row["prompt"] for row in rows]
    replies = {model: [row[f"{raw}_response"] for row in rows] for model, raw in _RAW.items()}
    replies["gpt3-6b"] = [solved[p]["solution"] for p in prompts]
    scores = {model: [float(row[raw]) for row in rows] for model, raw in _RAW.items()}
    scores["gpt3-6b"] = [float(solved[p]["is_correct"]) for p in prompts]
    costs = {m: [dollars(m, p, r) for p, r in zip(prompts, texts, strict=True)] for m, texts in replies.items()}
    return ReplyTable.of(prompts, scores, costs, replies=replies)


def first_scores(table: ReplyTable, n: int) -> NDArray[np.float64]:
    """The table's scores of its first n queries; of the others none are known."""
    scores = table.scores.copy()
    scores[n:] = np.nan
    return scores


def llmrouter9(run: Run, part: str) -> ReplyTable:
    """Scores of nine models, groups are tasks; a query costs its length times the model's price."""
    rows = list(run.rows(f"llmrouter9/{part}.jsonl.gz"))
    about = json.loads((run.data / "llmrouter9/default_llm.json").read_text())
    models = sorted(rows[0]["scores"])
    prompts = [row["query"] for row in rows]
    price = {model: about[model]["input_price"] for model in models}
    return ReplyTable.of(
        prompts,
        {model: [float(row["scores"][model]) for row in rows] for model in models},
        {m: [price[m] * len(p) / _CHARACTERS_PER_TOKEN / 1e6 for p in prompts] for m in models},
        groups=[row["task_name"] for row in rows],
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds, by the t distribution."""
    from scipy import stats

    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    half = float(stats.t.ppf(0.975, max(len(values) - 1, 1))) * spread
    return float(np.mean(values)) - half, float(np.mean(values)) + half
