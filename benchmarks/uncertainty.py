"""How sure a small model's answers are: real generations, AUROC of being right, calibration on average and by group.

Generations are kept outside the repository, in the cache beside the models, and made a few at a time: stop and start
again as often as wanted. ``--only make`` makes more; every other part scores what there is.
"""

from __future__ import annotations

import json
import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Run
from benchmarks.judged.entailment import entailment_model
from benchmarks.judged.sampling import answers
from pilotfish.models import catalog
from pilotfish.models.embedder import StaticEmbedder
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import FloatArray
from pilotfish.scorers.agreement import Agreement
from pilotfish.scorers.answers import MeanLogProb, final_answer
from pilotfish.scorers.arithmetic import mended, statements
from pilotfish.scorers.calibration import GroupCalibration, PlattCalibration, calibration_error, grouping_loss
from pilotfish.scorers.likelihood import NegativePerplexity, TokenEntropy
from pilotfish.scorers.reference import Length
from pilotfish.scorers.selfcheck import SelfCheck, SemanticEntropy
from pilotfish.statistics import auroc, auroc_interval
from pilotfish.types import Exchange, Reply, Request, TokenLogProb

MODEL = "qwen2.5-coder-0.5b-instruct"
N_SAMPLES = 5
_LETTER = "Answer with the letter only."
_LINE = "Show the calculation in one short line, then write 'The answer is ' and the number."
_STEPS = "Write one short calculation a line, without words. End with 'The answer is ' and the number."
_LENGTHS = {"commonsenseqa": 1, "svamp": 48, "gsm8k": 112}
_AT_ONCE = 12
_CALCULATED, _RESULT = re.compile(r"<<.*?>>"), re.compile(r"=\s*\$?\s*([1-9])")


def main(run: Run) -> None:
    n_each = 20 if run.quick else 500
    # A run goes on where the last one stopped; one that is told to make does so to the end.
    seconds = math.inf if "make" in run.only else 20.0 if run.quick else 240.0
    if run.wants("make"):
        make(run, n_each, seconds)
    if run.wants("score"):
        score(run)
    if run.wants("numbers"):
        numbers(run)


def _place() -> Path:
    return catalog.cache_dir("x").parent.parent / "benchmarks" / "uncertainty.jsonl"


def questions(run: Run, n_each: int) -> Iterator[dict[str, str]]:
    """Questions of the three sets in turn, as many of each."""
    sets: dict[str, list[dict[str, str]]] = {"commonsenseqa": [], "svamp": [], "gsm8k": []}
    for row in run.rows("commonsenseqa/dev_rand_split.jsonl.gz"):
        asked = row["question"]
        options = "\n".join(f"{c['label']}. {c['text']}" for c in asked["choices"])
        prompt = f"{asked['stem']}\n{options}\n{_LETTER}"
        sets["commonsenseqa"].append({"prompt": prompt, "gold": row["answerKey"].lower()})
    for row in run.rows("svamp/svamp.jsonl.gz"):
        gold = final_answer(str(row["Answer"]))
        sets["svamp"].append({"prompt": f"{row['Body']} {row['Question']}\n{_LINE}", "gold": gold})
    for row in run.rows("gsm8k/test.jsonl.gz"):
        sets["gsm8k"].append({"prompt": f"{row['question']}\n{_STEPS}", "gold": final_answer(row["answer"])})
    chosen = {
        name: [{"set": name, **rows[i]} for i in np.random.default_rng(0).permutation(len(rows))[:n_each]]
        for name, rows in sets.items()
    }
    for k in range(0, n_each, 2 * _AT_ONCE):
        for rows in chosen.values():
            yield from rows[k : k + 2 * _AT_ONCE]


def _known() -> dict[str, dict[str, Any]]:
    if not _place().is_file():
        return {}
    rows = []
    for line in _place().read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # a line that a stop cut off
    return {row["prompt"]: row for row in rows}


def make(run: Run, n_each: int, seconds: float) -> None:
    """Generate an answer and five samples to each question, appended a batch at a time."""
    known, n_made = _known(), 0
    todo = [row for row in questions(run, n_each) if row["prompt"] not in known]
    started = time.monotonic()
    _place().parent.mkdir(parents=True, exist_ok=True)
    model = TransformersModel(MODEL, dtype="bfloat16")
    with _place().open("a", encoding="utf-8") as out:
        for rows in _batches(todo):
            if time.monotonic() - started > seconds:
                break
            kind = rows[0]["set"]
            asked = [Request.of(row["prompt"], max_tokens=_LENGTHS[kind]) for row in rows]
            choices = list("ABCDE") if kind == "commonsenseqa" else None
            seeds = [zlib.crc32(row["prompt"].encode()) for row in rows]
            for row, replies in zip(rows, answers(model, asked, N_SAMPLES, seeds, choices), strict=True):
                out.write(json.dumps({**row, "replies": [_kept(reply) for reply in replies]}) + "\n")
            out.flush()
            n_made += len(rows)
    spent = time.monotonic() - started
    print(f"made {n_made} in {spent:.0f} s, {len(known) + n_made} in all; {len(todo) - n_made} to go")


def _batches(rows: Sequence[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Neighbouring rows of one set, prompts of like length together."""
    for _, same in groupby(rows, key=lambda row: row["set"]):
        part = sorted(same, key=lambda row: len(row["prompt"]))
        yield from (part[k : k + _AT_ONCE] for k in range(0, len(part), _AT_ONCE))


def _kept(reply: Reply) -> dict[str, Any]:
    return {"text": reply.text, "log_probs": [[t.log_prob, *(p for _, p in t.top)] for t in reply.log_probs]}


def _reply(made: dict[str, Any]) -> Reply:
    tokens = tuple(TokenLogProb("", min(0.0, p), tuple(("", q) for q in top)) for p, *top in made["log_probs"])
    return Reply(made["text"], log_probs=tokens)


def score(run: Run) -> None:
    """AUROC of every scorer and of a line through them; calibration and grouping loss on halves not learned from."""
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in _known().values():
        by_set.setdefault(row["set"], []).append(row)
    # As many of each set as there are of the one with the fewest.
    fewest = min(map(len, by_set.values()), default=0)
    rows = [row for part in by_set.values() for row in part[:fewest]]
    if run.quick:
        rows = [row for part in by_set.values() for row in part[: min(fewest, 60)]]
    labels = np.array([float(final_answer(r["replies"][0]["text"]) == r["gold"]) for r in rows])
    if len(rows) < 40 or labels.min() == labels.max():
        print(f"{len(rows)} generations are too few: run 'python -m benchmarks uncertainty --only make' first")
        return
    items = []
    for row in rows:
        first, *samples = map(_reply, row["replies"])
        items.append(Exchange(Request.of(row["prompt"]), first, (), samples))
    scorers = {
        "length": Length(),
        "mean log-prob": MeanLogProb(),
        "least log-prob": MeanLogProb(least=True),
        "perplexity": NegativePerplexity(),
        "token entropy": TokenEntropy(),
        "agreement": Agreement(),
        "selfcheck n-gram": SelfCheck(),
        "semantic entropy": SemanticEntropy(),
        "semantic entropy, likelihood": SemanticEntropy(weights="likelihood"),
    }
    table = np.column_stack([s.score(items) for s in scorers.values()])
    table = np.where(np.isfinite(table), table, np.nanmean(table, axis=0))
    sets = sorted({r["set"] for r in rows})
    kinds = np.array([[float(r["set"] == s) for s in sets] for r in rows])
    joined, confidence, by_group = _crossed(table[:, 1:], labels, kinds)
    for name in sets:
        at = np.array([r["set"] == name for r in rows])
        print(f"{name}: {at.sum()} answers, {labels[at].mean():.1%} right")
    found = {name: auroc_interval(table[:, k], labels) for k, name in enumerate(scorers)}
    found["line through all but length"] = auroc_interval(joined, labels)
    for name, value in found.items():
        inside = []
        for s in sets:
            at = np.array([r["set"] == s for r in rows])
            column = joined if name.startswith("line") else table[:, list(scorers).index(name)]
            if 0 < labels[at].sum() < at.sum():
                inside.append(f"{s} {auroc_interval(column[at], labels[at], n_resamples=2).value:.3f}")
        print(f"{name:30s} {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]  {', '.join(inside)}")
    best = found["line through all but length"]
    flipped = max(found["length"].value, 1 - found["length"].value)
    common = {"n": len(rows), "model": MODEL, "samples": N_SAMPLES}
    run.figure(
        "auroc", best.value, unit="AUROC of being right", better="higher", low=best.low, high=best.high,
        mean_log_prob=found["mean log-prob"].value, semantic_entropy=found["semantic entropy"].value,
        token_entropy=found["token entropy"].value, perplexity=found["perplexity"].value,
        **_by_models(run, items, labels), **common,
    )  # fmt: skip
    run.figure("auroc_length_only", flipped, unit="AUROC, better direction", better="lower", **common)
    names = [r["set"] for r in rows]
    run.figure(
        "ece", calibration_error(confidence, labels), unit="expected calibration error", better="lower", target=0.05,
        **common,
    )  # fmt: skip
    run.figure(
        "grouping_loss", grouping_loss(by_group, labels, names), unit="squared probability", better="lower",
        before=grouping_loss(confidence, labels, names), ece=calibration_error(by_group, labels), **common,
    )  # fmt: skip


def _by_models(run: Run, items: Sequence[Exchange], labels: FloatArray) -> dict[str, float]:
    """AUROC of SelfCheckGPT by n-grams, by vectors and by entailment."""
    ways = {"n_grams": SelfCheck(), "vectors": SelfCheck(StaticEmbedder())}
    entailment = entailment_model(run)
    if entailment is not None:
        ways["entailment"] = SelfCheck(entailment=entailment)
    found = {name: np.nan_to_num(way.score(items), nan=-1.0) for name, way in ways.items()}
    shown = {f"selfcheck_by_{name}": float(auroc(column, labels)) for name, column in found.items()}
    print(", ".join(f"{name} {value:.3f}" for name, value in shown.items()))
    return shown


def numbers(run: Run) -> None:
    """False statements about numbers: put into right solutions, found, mended; and those of real answers."""
    rng, counts = np.random.default_rng(0), Counter[str]()
    for row in run.rows("gsm8k/train.jsonl.gz"):
        text = _CALCULATED.sub("", row["answer"])
        checked = statements(text)
        counts["statements"] += len(checked)
        counts["false alarms"] += sum(not s.holds for s in checked)
        true = [s for s in checked if s.holds and _RESULT.search(text[s.start : s.end])]
        if not true:
            continue
        chosen = true[rng.integers(len(true))]
        at = chosen.start + _RESULT.search(text[chosen.start : chosen.end]).start(1)  # type: ignore[union-attr]
        digit = str(rng.choice([d for d in "123456789" if d != text[at]]))
        wrong = text[:at] + digit + text[at + 1 :]
        counts["made wrong"] += 1
        counts["caught"] += any(not s.holds and s.start <= at < s.end for s in statements(wrong))
        counts["mended"] += mended(wrong) == mended(text)
    shares: dict[bool, list[float]] = {True: [], False: []}
    for row in _known().values():
        text = row["replies"][0]["text"]
        if row["set"] != "commonsenseqa" and statements(text):
            shares[final_answer(text) == row["gold"]].append(float(any(not s.holds for s in statements(text))))
    print(dict(counts), {right: (len(part), float(np.mean(part))) for right, part in shares.items() if part})
    n = counts["made wrong"]
    run.figure(
        "contradictions_caught", counts["caught"] / n, unit="share of false equations", better="higher", n=n,
        mended=counts["mended"] / n, false_alarms=counts["false alarms"] / counts["statements"],
        n_right_statements=counts["statements"],
        note="GSM8K's training solutions, a digit of one equation changed; rules were written on its test solutions",
        **{
            f"flagged_of_{'right' if right else 'wrong'}_answers": float(np.mean(part))
            for right, part in shares.items() if part
        },
        n_answers=sum(map(len, shares.values())),
    )  # fmt: skip


def _crossed(table: FloatArray, labels: FloatArray, kinds: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A line, its calibration, and its calibration by group, each item's from folds that do not hold it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    joined, plain, grouped = (np.empty(labels.size) for _ in range(3))
    x = (table - table.mean(axis=0)) / (table.std(axis=0) + 1e-9)
    for learn, apply in StratifiedKFold(5, shuffle=True, random_state=0).split(x, labels):
        inner = np.empty(learn.size)
        for a, b in StratifiedKFold(4, shuffle=True, random_state=1).split(x[learn], labels[learn]):
            line = LogisticRegression(C=0.1).fit(x[learn][a], labels[learn][a])
            inner[b] = line.decision_function(x[learn][b])
        line = LogisticRegression(C=0.1).fit(x[learn], labels[learn])
        joined[apply] = line.decision_function(x[apply])
        plain[apply] = PlattCalibration().fit(inner, labels[learn]).predict(joined[apply])
        groups = GroupCalibration(min_leaf=20).fit(inner, labels[learn], kinds[learn])
        grouped[apply] = groups.predict(joined[apply], kinds[apply])
    return joined, plain, grouped
