"""Flagging unsupported summaries: trained on web text, esnli and RTE, tested on human judgements of news summaries."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.figures import Run
from benchmarks.judged.entailment import entailment_model, plain_documents
from pilotfish.protocols import FloatArray
from pilotfish.scorers.grounding import Grounding
from pilotfish.scorers.reference import Length
from pilotfish.statistics import auroc, auroc_interval, length_matched
from pilotfish.training.entailment import corrupted
from pilotfish.types import Exchange, Reply, Request

SETS = ("qags_cnn", "qags_xsum")


def main(run: Run) -> None:
    entailment = entailment_model(run)
    parts = {"rules and overlap": Grounding()}
    if entailment is not None:
        parts["rules, overlap, entailment"] = Grounding(entailment)
    examples = corrupted(plain_documents(run), 300 if run.quick else 1500, seed=7)
    taught = [_exchange(e.premise, e.hypothesis) for e in examples]
    labels = np.array([float(e.label == "entailment") for e in examples])
    for grounding in parts.values():
        grounding.fit(taught, labels)
    test = {name: _judged(run, name) for name in SETS}
    if run.wants("auroc"):
        detection(run, parts, test)
    if run.wants("speed"):
        speed(run, parts, test)


def _exchange(source: str, text: str) -> Exchange:
    return Exchange(Request.of("Summarise."), Reply(text), context=(source,))


def _judged(run: Run, name: str) -> tuple[list[Exchange], FloatArray]:
    rows = list(run.rows(f"summ_mt_human/{name}.jsonl.gz"))
    if run.quick:
        rows = rows[:120]
    outputs = [(r["src"], s) for r in rows for s in r["sys_summs"].values()]
    items = [_exchange(str(source), str(s["sys_summ"])) for source, s in outputs]
    return items, np.array([float(s["scores"]["fact"] > 0.999) for _, s in outputs])


def detection(run: Run, parts: dict[str, Grounding], test: dict[str, tuple[list[Exchange], FloatArray]]) -> None:
    """AUROC of being supported, against length alone in its better direction, and among equal lengths."""
    last, n, by_set, matched_by_set, lengths_by_set = "", 0, {}, {}, {}
    for name, (items, labels) in test.items():
        lengths = Length().score(items)
        alone = auroc(lengths, labels)
        lengths_by_set[name] = max(alone, 1 - alone)
        kept = length_matched(lengths, labels, n_bins=5)
        n += len(items)
        print(f"{name}: {len(items)} summaries, {labels.mean():.1%} supported; length alone {lengths_by_set[name]:.3f}")
        for last, grounding in parts.items():
            scores = grounding.score(items)
            found = auroc_interval(scores, labels)
            by_set[name], matched_by_set[name] = found, auroc(scores[kept], labels[kept])
            print(
                f"  {last:28s} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], "
                f"same length {matched_by_set[name]:.3f}"
            )
    gains = [by_set[name].value - lengths_by_set[name] for name in test]
    run.figure(
        "auroc_over_length",
        float(np.mean(gains)),
        unit="AUROC above length alone, mean of two sets",
        better="higher",
        n=n,
        low=float(np.mean([by_set[s].low - lengths_by_set[s] for s in test])),
        high=float(np.mean([by_set[s].high - lengths_by_set[s] for s in test])),
        auroc={s: round(by_set[s].value, 4) for s in test},
        length_alone={s: round(lengths_by_set[s], 4) for s in test},
        same_length={s: round(matched_by_set[s], 4) for s in test},
        parts=last,
        target=0.10,
    )


def speed(run: Run, parts: dict[str, Grounding], test: dict[str, tuple[list[Exchange], FloatArray]]) -> None:
    """Milliseconds for a passage of about 500 tokens: summary and source together."""
    items = [e for e, _ in zip(*test["qags_cnn"], strict=True)]
    passages = []
    for e in items[: 20 if run.quick else 60]:
        own = len(e.reply.text.split())
        source = " ".join(e.context[0].split()[: 380 - own])
        passages.append(_exchange(source, e.reply.text))
    for name, grounding in parts.items():
        grounding.score(passages[:2])
        times = []
        for passage in passages:
            started = time.perf_counter()
            grounding.score([passage])
            times.append((time.perf_counter() - started) * 1000)
        print(f"{name}: median {np.median(times):.1f} ms")
    run.figure(
        "median_ms",
        float(np.median(times)),
        unit="ms per 500-token passage",
        better="lower",
        n=len(times),
        parts=name,
        target=150.0,
    )
