"""Rules and whole recipes: speed, the reference's decisions, what more steps cost; private data and toxicity found."""

from __future__ import annotations

import json
import re
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

from benchmarks.curation.corpus import corpus
from benchmarks.curation.filters import filters
from benchmarks.curation.peers import measured
from benchmarks.curation.scale import scale
from benchmarks.figures import Run, bootstrap
from pilotfish.curation import Language, MinHashDedup, Rules
from pilotfish.curation.classifiers import NgramClassifier
from pilotfish.curation.importance import ImportanceWeight
from pilotfish.curation.privacy import Privacy, PrivacyTagger, span_f1
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.steps import Filter
from pilotfish.rules import Threshold


def main(run: Run) -> None:
    if run.wants("rules"):
        speed(run)
    if run.wants("privacy"):
        privacy(run)
    if run.wants("toxicity"):
        toxicity(run)
    if any(run.wants(part) for part in ("quality", "perplexity", "education", "meaning")):
        filters(run)
    if run.wants("scale"):
        scale(run)


def speed(run: Run) -> None:
    """Each kind of step and all of them together, on one core; decisions beside the reference's."""
    made = corpus(run)
    n = 10_000 if run.quick else 20_000
    texts = [d["text"] for d in islice(made.documents(), n)]
    parts = [texts[i : i + 500] for i in range(0, len(texts), 500)]
    n_bytes = sum(len(text.encode()) for text in texts)
    rules = Rules.gopher() + Rules.c4() + Rules.fineweb()
    weight = Filter("likeness", ImportanceWeight().fit(texts[:200], texts[:400]), Threshold(-np.inf))
    recipes = {
        "rules": [rules],
        "language": [Language("en", 0.0)],
        "signature": [MinHashDedup()],
        "n-gram features": [weight],
        "whole recipe": [rules, Language("en", 0.0), MinHashDedup(), weight],
    }
    # In turns, so that what else the machine does meets all alike.
    rounds = [{name: _timed(parts, steps) for name, steps in recipes.items()} for _ in range(2 if run.quick else 4)]
    seconds = {name: min(round_[name] for round_ in rounds) for name in recipes}
    for name, took in seconds.items():
        print(f"{name:16s} {n_bytes / took / 1e6:7.1f} MB/s a core", flush=True)
    slowest = max(took for name, took in seconds.items() if name != "whole recipe")
    agreement, peer = _agreement(run, made.files[0])
    run.figure(
        "rules_mb_per_s_core",
        n_bytes / seconds["rules"] / 1e6,
        unit="MB/s a core",
        better="higher",
        n=len(texts),
        target=10,
        peer="datatrove" if peer else None,
        peer_value=peer,
        peer_source="measured" if peer else None,
    )
    if agreement is not None:
        run.figure("rules_agreement", agreement, unit="share of decisions", better="higher", n=1200, target=0.995)
    run.figure(
        "fused_ratio",
        seconds["whole recipe"] / slowest,
        unit="whole recipe over its slowest step",
        better="lower",
        n=len(texts),
        target=1.5,
    )


def _timed(parts: list[list[str]], steps: list) -> float:
    """Seconds to read every part once and judge it by every step."""
    from pilotfish.curation.documents import Document

    documents = [[Document(text, str(i)) for i, text in enumerate(part)] for part in parts]
    started = time.process_time()
    for part, group in zip(parts, documents, strict=True):
        plan = Plan()
        for step in steps:
            step.plan(plan)
        batch = Batch(part).scan(plan)
        rows = np.arange(len(part))
        for step in steps:
            step.keys(batch, rows, group) if hasattr(step, "keys") else step.judge(batch, rows, group)
    return time.process_time() - started


def _agreement(run: Run, path) -> tuple[float | None, float | None]:
    """Share of equal decisions over four sets of rules, and the reference's speed."""
    n = 300 if run.quick else 1200
    peer = measured("datatrove", "datatrove_rules.py", path, n)
    if peer is None:
        return None, None
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, n)]
    batch = Batch(texts).scan(Plan(measures=True))
    same = []
    for name, reasons in peer["reasons"].items():
        kept = getattr(Rules, name)().judge(batch, np.arange(n), []).kept
        same.append(float(np.mean(kept == np.array([reason == "" for reason in reasons]))))
        print(f"{name}: {same[-1]:.4f} of decisions the same")
    return float(np.mean(same)), peer["bytes"] / peer["seconds"] / 1e6


def privacy(run: Run) -> None:
    """Characters masked as private by patterns and a tagger; trained and tested on other templates."""
    rows = list(run.rows("pii_presidio/synth_v2.jsonl.gz"))
    templates = np.array([row["template_id"] for row in rows])
    texts = [row["full_text"] for row in rows]
    spans = [[(s["start_position"], s["end_position"], s["entity_type"]) for s in row["spans"]] for row in rows]
    names = np.unique(templates)
    scores: dict[str, list[float]] = {"patterns": [], "patterns and tagger": []}
    peer = _told("presidio", "presidio_privacy.py", texts)
    if peer is not None:
        scores["presidio"] = []
    for fold in np.array_split(np.random.default_rng(0).permutation(names), 5):
        test, train = np.flatnonzero(np.isin(templates, fold)), np.flatnonzero(~np.isin(templates, fold))
        tagger = PrivacyTagger().fit([texts[i] for i in train], [spans[i] for i in train])
        truth = [spans[i] for i in test]
        for name, step in (("patterns", Privacy()), ("patterns and tagger", Privacy(tagger))):
            found = [_masked(texts[i], next(step([texts[i]]))) for i in test]
            scores[name].append(span_f1(found, truth)[2])
        if peer is not None:
            scores["presidio"].append(span_f1([peer["spans"][i] for i in test], truth)[2])
    for name, values in scores.items():
        print(f"{name:20s} F1 {np.mean(values):.3f}", flush=True)
    ours = np.array(scores["patterns and tagger"])
    low, high = bootstrap(ours)
    run.figure(
        "privacy_f1",
        float(ours.mean()),
        unit="F1 of private characters, five folds of unseen templates",
        better="higher",
        n=len(texts),
        low=low,
        high=high,
        peer="presidio-analyzer, by pattern" if peer else None,
        peer_value=float(np.mean(scores["presidio"])) if peer else None,
        peer_source="measured; its pipelines for names cannot be installed here" if peer else None,
        patterns_alone=float(np.mean(scores["patterns"])),
    )


def _masked(text: str, masked: str) -> list[tuple[int, int, str]]:
    """Where a masked text has marks in the place of characters of the text."""
    kept = re.split(r"\[[A-Z_]+\]", masked)
    found = re.fullmatch("(.*?)".join(re.escape(piece) for piece in kept), text, re.DOTALL)
    return [] if found is None else [(*found.span(k), "private") for k in range(1, len(kept))]


def toxicity(run: Run) -> None:
    """Hate and offence told from neither, on texts whose like were not learned from."""
    rows = {" ".join(re.sub(r"@\w+|https?:\S+|RT", "", row["text"]).lower().split()): row for row in
            run.rows("hate_davidson/all.jsonl.gz")}  # fmt: skip
    texts, toxic = [row["text"] for row in rows.values()], np.array([row["label"] != 2 for row in rows.values()])
    peer = _told("profanity", "profanity_toxicity.py", texts)
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in range(1 if run.quick else 5):
        order = np.random.default_rng(seed).permutation(len(texts))
        test, train = order[: len(texts) // 5], order[len(texts) // 5 :]
        model = NgramClassifier().fit(*([texts[i] for i in train if toxic[i] == kind] for kind in (True, False)))
        said = {"ours": model.score([texts[i] for i in test]) > 0.5, "every text": np.ones(test.size, dtype=bool)}
        if peer is not None:
            said["alt-profanity-check"] = np.array(peer)[test] > 0.5
        refitted = _refitted([texts[i] for i in train], toxic[train])
        said["alt-profanity-check's method"] = refitted.predict([texts[i] for i in test])
        for name, flags in said.items():
            both = f1_score(toxic[test], flags), f1_score(toxic[test], flags, average="macro")
            scores.setdefault(name, []).append(both)
    for name, values in scores.items():
        print(f"{name:30s} F1 {np.mean(values, axis=0)[0]:.3f}, mean of both classes {np.mean(values, axis=0)[1]:.3f}")
    ours = np.array(scores["ours"])
    for k, figure in enumerate(("toxicity_f1", "toxicity_macro_f1")):
        low, high = bootstrap(ours[:, k])
        run.figure(
            figure,
            float(ours[:, k].mean()),
            unit="F1" if k == 0 else "mean F1 of toxic and not",
            better="higher",
            n=len(texts) // 5,
            seeds=len(ours),
            low=low,
            high=high,
            peer="alt-profanity-check's method, learned from the same texts",
            peer_value=float(np.mean(scores["alt-profanity-check's method"], axis=0)[k]),
            peer_source="measured",
            # By its own description it learned from this very set, test texts included.
            as_published=float(np.mean(scores["alt-profanity-check"], axis=0)[k]) if peer else None,
            every_text=float(np.mean(scores["every text"], axis=0)[k]),
        )


def _refitted(train: list[str], labels: NDArray[Any]) -> Pipeline:
    """The peer's kind of model, counts of words under a linear machine, learned from the same texts as ours."""
    machine = LinearSVC(class_weight="balanced", dual=False, tol=1e-2, max_iter=100_000)
    words = CountVectorizer(stop_words="english", min_df=0.0001)
    return make_pipeline(words, CalibratedClassifierCV(machine)).fit(train, labels)


def _told(peer: str, script: str, texts: list[str]) -> Any:
    """What a peer's script says of texts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts), encoding="utf-8")
        return measured(peer, script, path, limit=240)
