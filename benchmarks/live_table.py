"""Live cascades of two local models: the replies are recorded once as a table, every figure is worked out from it.

The smallest model also stands in tuned on questions of the tasks' training files, as a small model in front of a large
one is meant to be used; it is tuned once and kept beside the replies.

``python -m benchmarks cascade --only live`` generates what is missing from the file of replies and measures. The file
lies in ``~/.cache/pilotfish/benchmarks``, outside the repository, since it repeats the questions; delete it to record
anew. Compute is counted as arithmetic, which no other work on the machine can disturb: two operations per parameter and
token read or written. The seconds are recorded too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run, bootstrap
from benchmarks.outcomes import interval
from pilotfish.models.gguf import GGUFModel
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import Model
from pilotfish.route.policies import CascadePolicy
from pilotfish.scorers.answers import AnswerQuality, final_answer
from pilotfish.scorers.costs import PerCost
from pilotfish.traffic.table import ReplyTable
from pilotfish.training.tuning import save_model, tune
from pilotfish.types import Exchange, Request

SMALLEST, SMALL, LARGE = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"
TUNED = f"{SMALLEST}, tuned"
# Name of the figures, and the pair.
PAIRS = {"live_tuned": (TUNED, SMALL), "live_smallest": (SMALLEST, SMALL), "live": (SMALL, LARGE)}
REPLIES = Path.home() / ".cache" / "pilotfish" / "benchmarks" / "live_replies.jsonl"
_PARAMETERS = {SMALLEST: 0.1345e9, TUNED: 0.1345e9, SMALL: 0.494e9, LARGE: 1.544e9}
_GSM8K_SHARE = 0.5
_PER_TASK = 120
_LEARNED: dict[str, Any] = {"n_steps": 75, "batch_size": 8, "learning_rate": 1e-4}


def questions(run: Run, n: int, part: str = "test") -> list[tuple[str, str, str, int]]:
    """Task, prompt, right answer and longest reply of ``n`` questions of two tasks and half as many of a slow third."""
    rng = np.random.default_rng(0)
    out = []
    rows = list(run.rows(f"commonsenseqa/{'dev' if part == 'test' else part}_rand_split.jsonl.gz"))
    for i in rng.permutation(len(rows))[:n]:
        asked = rows[i]["question"]
        options = "\n".join(f"{c['label']}. {c['text']}" for c in asked["choices"])
        prompt = f"{asked['stem']}\n{options}\nAnswer with the letter only."
        out.append(("commonsenseqa", prompt, rows[i]["answerKey"], 2))
    rows = list(run.rows(f"sst2/{part}.jsonl.gz"))
    for i in rng.permutation(len(rows))[:n]:
        prompt = f"Review: {rows[i]['text']}\nIs it positive or negative? Answer with one word."
        out.append(("sst2", prompt, "positive" if int(rows[i]["label"]) == 1 else "negative", 3))
    rows = list(run.rows(f"gsm8k/{part}.jsonl.gz"))
    for i in rng.permutation(len(rows))[: round(_GSM8K_SHARE * n)]:
        prompt = (
            f"{rows[i]['question']}\nSolve it in a few short steps, without headings. End with '#### ' and the number."
        )
        out.append(("gsm8k", prompt, rows[i]["answer"].split("####")[1].strip(), 256))
    return out


def tuned(run: Run, folder: Path) -> TransformersModel:
    """The smallest model, tuned on 600 training questions of the two tasks whose answers are a word."""
    if not folder.is_dir():
        asked = questions(run, 16 if run.quick else 300, "train")
        examples = [(Request.of(prompt), answer) for task, prompt, answer, _ in asked if task != "gsm8k"]
        how = {**_LEARNED, "n_steps": 2} if run.quick else _LEARNED
        save_model(tune(TransformersModel(SMALLEST), examples, **how), folder)
    return TransformersModel(folder, batch_size=1)


def is_right(task: str, reply: str, gold: str) -> bool:
    """Whether a reply's answer is the right one."""
    if task == "gsm8k":
        return final_answer(reply) == final_answer(gold)
    return reply.strip().strip("\"'.( ").casefold().startswith(gold.casefold())


def record(run: Run, names: Sequence[str], n: int, path: Path) -> list[dict[str, object]]:
    """Ask models what is not on file yet, one question at a time, and keep every reply."""
    known: dict[tuple[str, str], dict[str, object]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            known[row["query"], row["model"]] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = questions(run, n)
    for name in names:
        missing = [q for q in asked if (q[1], name) not in known]
        if not missing:
            continue
        model: Model = (
            tuned(run, path.with_suffix(".tuned"))
            if name == TUNED
            else GGUFModel(name, n_ctx=1024, n_parallel=1, n_threads=1)
        )
        model.generate([Request.of("Say hi.", max_tokens=2)])
        with path.open("a", encoding="utf-8") as out:
            for task, prompt, gold, longest in missing:
                started = time.perf_counter()
                [reply] = model.generate([Request.of(prompt, temperature=0.0, max_tokens=longest, log_probs=0)])
                seconds = time.perf_counter() - started
                row = {
                    "query": prompt,
                    "model": name,
                    "group": task,
                    "reply": reply.text,
                    "score": float(is_right(task, reply.text, gold)),
                    "cost": 2 * _PARAMETERS[name] * (reply.usage.prompt_tokens + reply.usage.completion_tokens) / 1e12,
                    "latency": seconds,
                    "log_prob": float(np.mean([t.log_prob for t in reply.log_probs])) if reply.log_probs else None,
                }
                known[prompt, name] = row
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                out.flush()
    return [known[prompt, name] for _, prompt, _, _ in asked for name in names]


class _Recorded:
    """The answer's description beside its recorded mean log-probability."""

    def __init__(self, rows: list[dict[str, object]]) -> None:
        self.log_prob = {(str(r["query"]), str(r["reply"])): r.get("log_prob") for r in rows}

    def score(self, items: Sequence[Exchange]) -> NDArray[np.float64]:
        found = [self.log_prob.get((e.request.prompt, e.reply.text)) for e in items]
        return np.array([np.nan if v is None else v for v in found], dtype=np.float64)


def live(run: Run, names: Sequence[str]) -> None:
    """Quality of the larger model of pairs at a share of its compute."""
    path = Path(f"{REPLIES}.quick") if run.quick else REPLIES
    for name in names:
        pair = PAIRS[name]
        rows = record(run, pair, 10 if run.quick else _PER_TASK, path)
        table = ReplyTable.from_rows([{k: v for k, v in row.items() if k != "log_prob"} for row in rows])
        _measured(run, name, table.of_models(pair), [row for row in rows if row["model"] == pair[0]])


def _measured(run: Run, name: str, table: ReplyTable, first: list[dict[str, object]]) -> None:
    """The small answers scored by form and log-probability, each gain by what it costs to go on."""
    shares, ratios = [], []
    for seed in range(2 if run.quick else 20):
        fit, calibrate, test = table.split((0.5, 0.2, 0.3), seed=seed)
        scorer = PerCost(AnswerQuality(parts=[_Recorded(first)]))
        policy = CascadePolicy(name, table.models, (scorer,), gain=True).fit(fit)
        budget = max(0.6 * float(calibrate.costs[:, 1].mean()), float(calibrate.costs[:, 0].mean()))
        choice = policy.run(test, _threshold(policy, calibrate, budget))
        shares.append(float(choice.costs(test).mean() / test.costs[:, 1].mean()))
        ratios.append(float(choice.qualities(test).mean() / max(test.scores[:, 1].mean(), 1e-9)))
    quality = dict(zip(table.models, table.scores.mean(axis=0).round(3).tolist(), strict=True))
    spent = dict(zip(table.models, table.costs.mean(axis=0).round(3).tolist(), strict=True))
    print(f"{name}: right {quality}, 10^12 operations per reply {spent}")
    low, high = interval(shares)
    floor = clairvoyant(table)
    print(f"who knew each reply's score would need {floor:.1%} of the large model's operations to be right as often")
    common = {"n": table.n_queries, "seeds": len(shares)}
    run.figure(
        f"{name}_compute_share", float(np.mean(shares)), unit="share of the large model's operations", better="lower",
        low=low, high=high, target=0.60, clairvoyant=floor, **common,
    )  # fmt: skip
    low, high = bootstrap(np.array(ratios))
    run.figure(
        f"{name}_quality_ratio", float(np.mean(ratios)), unit="of the large model's accuracy", better="higher", low=low,
        high=high, target=1.0, pair=list(table.models), small_alone=quality[table.models[0]],
        large_alone=quality[table.models[1]], **common,
    )  # fmt: skip


def _threshold(policy: CascadePolicy, table: ReplyTable, budget: float) -> tuple[float]:
    """The threshold that spends most within the budget, and never goes on where stopping is expected to gain.

    The score says what stopping gains by its cost, so a few calibration questions have only to tell what is spent.
    """
    spent = [(float(policy.run(table, at).costs(table).mean()), at[0]) for at in policy.settings(table)]
    return (min(max((cost, at) for cost, at in spent if cost <= budget + 1e-12)[1], 0.0),)


def clairvoyant(table: ReplyTable) -> float:
    """Least share of the large model's cost at which the two are right as often as it, by whoever knows all scores."""
    small, large = table.scores.T
    dearer = np.sort((table.costs[:, 1] - table.costs[:, 0])[(small < 1) & (large == 1)])
    n_needed = max(0, round(float(large.sum() - small.sum())))
    return float((table.costs[:, 0].sum() + dearer[:n_needed].sum()) / table.costs[:, 1].sum())
