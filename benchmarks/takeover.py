"""Takeover: how many calls of a frontier model a certified student answers, how well, how soon and how fast."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.banking import recorded_calls
from benchmarks.figures import Run
from benchmarks.students.peers import answered
from pilotfish.answers import normalise
from pilotfish.protocols import FloatArray
from pilotfish.takeover import Target, certify
from pilotfish.takeover.learning import Lesson, learn
from pilotfish.takeover.replay import replay
from pilotfish.training.closed_set import ClosedSetStudent

LEVELS = (0.95, 0.97, 0.98, 0.99)
BASELINE = "scikit-learn on MiniLM and n-grams"
PUBLISHED = {"system": 0.722, "answers": 0.623}
FIGURES = {"system": "local_at_{}_system", "answers": "local_at_{}_answers"}


@dataclass(frozen=True)
class Traffic:
    """Recorded calls: texts, the large model's answers, gold labels."""

    texts: list[str]
    answers: list[str]
    gold: list[str]

    def take(self, rows: Sequence[int]) -> Traffic:
        """Some of the calls."""
        return Traffic([self.texts[i] for i in rows], [self.answers[i] for i in rows], [self.gold[i] for i in rows])


def main(run: Run) -> None:
    """Print all figures of the benchmark."""
    train, test = _traffic(run, "train"), _traffic(run, "test")
    order = np.random.default_rng(0).permutation(len(train.texts))
    train = train.take(order[:3000] if run.quick else order)
    if run.wants("coverage") or run.wants("speed"):
        started = time.perf_counter()
        student = ClosedSetStudent().fit(train.texts, train.answers)
        seconds = time.perf_counter() - started
        if run.wants("coverage"):
            coverage(run, student, test)
            naive_peer(run, train, test)
        if run.wants("speed"):
            run.figure("learn_seconds_10k", seconds, unit="s", better="lower", n=len(train.texts))
            speed(run, student, test)
    if run.wants_long("variants"):
        variants(run, train, test)
    if run.wants_long("peers"):
        others(run, train, test)
    if run.wants("gold"):
        few_gold(run, train, test)
    if run.wants("correctness"):
        correctness(run, train, test)
    if run.wants("stream"):
        stream(run)


def _traffic(run: Run, part: str) -> Traffic:
    rows = list(run.rows(f"banking77/{part}.jsonl.gz"))
    return Traffic([r["text"] for r in rows], [r["llm"] for r in rows], [normalise(r["label"]) for r in rows])


def _scored(student: ClosedSetStudent, test: Traffic) -> tuple[FloatArray, FloatArray, FloatArray]:
    predicted = student.predict(test.texts)
    wrong = [normalise(a) != normalise(b) for a, b in zip(predicted.labels, test.answers, strict=True)]
    confidence = predicted.confidence
    return np.where(predicted.familiar, confidence, -np.inf), np.array(wrong, dtype=np.float64), confidence


def coverage(run: Run, student: ClosedSetStudent, test: Traffic) -> None:
    """Certify on one half of the test calls, count local answers on the other, over 20 splits."""
    scores, wrong, confidence = _scored(student, test)
    for measure, name in FIGURES.items():
        for level in LEVELS:
            shares, kept = _over_splits(scores, wrong, Target(measure, level))  # type: ignore[arg-type]
            peer, peer_value = (BASELINE, PUBLISHED[measure]) if level == 0.97 else (None, None)
            run.figure(
                name.format(round(100 * level)),
                float(np.median(shares)),
                unit="share",
                better="higher",
                n=len(test.texts),
                seeds=20,
                low=float(np.min(shares)),
                high=float(np.max(shares)),
                peer=peer,
                peer_value=peer_value,
                peer_source="published" if peer else None,
                kept=round(float(np.median(kept)), 4),
            )
    target = Target("system", 0.97)
    rng = np.random.default_rng(0)
    missed = []
    for _ in range(200 if run.quick else 1000):
        rows = rng.choice(scores.size, scores.size // 2)
        threshold = certify(scores[rows], wrong[rows], target).threshold
        missed.append(wrong[scores >= threshold].sum() / scores.size > target.risk)
    run.figure("target_missed", float(np.mean(missed)), unit="share", better="lower", n=len(missed), seeds=len(missed))
    run.figure("ece", _ece(confidence, 1 - wrong), unit="share", better="lower", n=len(test.texts))
    run.figure("agreement", float(1 - wrong.mean()), unit="share", better="higher", n=len(test.texts))


def _over_splits(scores: FloatArray, wrong: FloatArray, target: Target) -> tuple[list[float], list[float]]:
    shares, kept = [], []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(scores.size)
        half, rest = order[: scores.size // 2], order[scores.size // 2 :]
        local = scores[rest] >= certify(scores[half], wrong[half], target).threshold
        shares.append(float(local.mean()))
        lost = wrong[rest][local].sum()
        kept.append(1 - lost / (rest.size if target.measure == "system" else max(1, local.sum())))
    return shares, kept


def _ece(confidence: FloatArray, hits: FloatArray, n_bins: int = 15) -> float:
    """Expected calibration error over bins of equal numbers of calls."""
    bins = np.array_split(np.argsort(confidence, kind="stable"), n_bins)
    return float(sum(abs(confidence[b].mean() - hits[b].mean()) * b.size for b in bins) / confidence.size)


def naive_peer(run: Run, train: Traffic, test: Traffic) -> None:
    """TF-IDF and logistic regression, with the threshold that just met the level on the held-out half."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=300)
    )
    model.fit(train.texts, [normalise(a) for a in train.answers])
    proba = model.predict_proba(test.texts)
    scores = proba.max(axis=1)
    said = model.classes_[proba.argmax(axis=1)]
    wrong = np.array([a != normalise(b) for a, b in zip(said, test.answers, strict=True)], dtype=np.float64)
    shares, broken = [], []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(scores.size)
        half, rest = order[: scores.size // 2], order[scores.size // 2 :]
        ranked = half[np.argsort(-scores[half])]
        fits = np.flatnonzero(np.cumsum(wrong[ranked]) <= 0.03 * half.size)
        local = scores[rest] >= scores[ranked[fits[-1]]]
        shares.append(float(local.mean()))
        broken.append(float(wrong[rest][local].sum() > 0.03 * rest.size))
    run.figure(
        "local_at_97_system_naive",
        float(np.median(shares)),
        unit="share",
        better="higher",
        n=len(test.texts),
        seeds=20,
        note="TF-IDF and logistic regression, no bound",
        missed=float(np.mean(broken)),
    )


def others(run: Run, train: Traffic, test: Traffic) -> None:
    """What other packages would answer after learning from the same calls, by their own gates at 97 %."""
    system = (run.data / "banking77" / "system_prompt.txt").read_text(encoding="utf-8")
    pairs = [list(zip(t.texts, map(normalise, t.answers), strict=True)) for t in (train, test)]
    for peer, figure, measure in (
        ("thinkless", "local_at_97_answers_thinkless", "answers"),
        ("jevstiller", "local_at_97_system_jevstiller", "system"),
    ):
        found = answered(peer, system, *pairs, level=0.97, labels=sorted(set(train.gold)))
        if found is None:
            continue
        local = np.array(found["local"])
        wrong = np.array([normalise(a) != normalise(b) for a, b in zip(found["said"], test.answers, strict=True)])
        lost = float((local & wrong).sum() / (max(1, local.sum()) if measure == "answers" else local.size))
        run.figure(
            figure,
            float(local.mean()),
            unit="share",
            better="higher",
            n=len(test.texts),
            note=found["version"],
            kept=round(1 - lost, 4),
            seconds=round(float(found["seconds"]), 1),
        )


def speed(run: Run, student: ClosedSetStudent, test: Traffic) -> None:
    """Answer the test calls in one batch, then every sixth (the file is sorted by class) alone."""
    batch, times = _speeds(student, test)
    run.figure("student_calls_per_s", batch, unit="calls/s", better="higher", n=len(test.texts))
    run.figure("student_p50_ms", float(np.median(times)), unit="ms", better="lower", n=len(times))


def _speeds(student: ClosedSetStudent, test: Traffic) -> tuple[float, list[float]]:
    student.predict(test.texts[:64])
    started = time.perf_counter()
    student.predict(test.texts)
    batch = len(test.texts) / (time.perf_counter() - started)
    times = []
    for text in test.texts[::6]:
        started = time.perf_counter()
        student.predict([text])
        times.append(1000 * (time.perf_counter() - started))
    return batch, times


def variants(run: Run, train: Traffic, test: Traffic) -> None:
    """What a larger or lighter student, or an encoder in full precision, is worth and takes."""
    told = (run.data / "banking77" / "system_prompt.txt").read_text(encoding="utf-8")
    for name, made in (
        ("language", ClosedSetStudent("language")),
        ("large", ClosedSetStudent("large")),
        ("fp32", ClosedSetStudent(precision="fp32")),
        ("static", ClosedSetStudent("static")),
        ("ngrams", ClosedSetStudent("ngrams")),
    ):
        started = time.perf_counter()
        student = made.fit(train.texts, train.answers, instruction=told)
        seconds = time.perf_counter() - started
        scores, wrong, _ = _scored(student, test)
        shares, _ = _over_splits(scores, wrong, Target("system", 0.97))
        batch, times = _speeds(student, test)
        run.figure(
            f"local_at_97_system_{name}", float(np.median(shares)), unit="share", better="higher", n=len(test.texts),
            seeds=20, low=min(shares), high=max(shares), learn_seconds=seconds, calls_per_s=batch,
            p50_ms=float(np.median(times)),
        )  # fmt: skip


def few_gold(run: Run, train: Traffic, test: Traffic) -> None:
    """Right answers on the test calls, learned from the large model's answers and a few gold labels a class."""
    seeds = range(1 if run.quick else 3)
    published = {0: None, 3: ("gold labels alone", 0.751), 10: ("gold labels alone", 0.852)}
    for n_gold in (0, 3, 10):
        right = []
        for seed in seeds:
            gold = _few(train, n_gold, seed)
            student = ClosedSetStudent(seed=seed).fit(train.texts, train.answers, gold)
            said = map(normalise, student.predict(test.texts).labels)
            right.append(float(np.mean([a == b for a, b in zip(said, test.gold, strict=True)])))
        peer = published[n_gold]
        run.figure(
            f"student_accuracy_{n_gold}_gold",
            float(np.median(right)),
            unit="share",
            better="higher",
            n=len(test.texts),
            seeds=len(seeds),
            low=min(right),
            high=max(right),
            peer=peer[0] if peer else None,
            peer_value=peer[1] if peer else None,
            peer_source="published" if peer else None,
        )


def _few(train: Traffic, n_gold: int, seed: int) -> list[str | None]:
    by_class: dict[str, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(train.gold)):
        by_class[train.gold[i]].append(int(i))
    known = {i for rows in by_class.values() for i in rows[:n_gold]}
    return [label if i in known else None for i, label in enumerate(train.gold)]


def correctness(run: Run, train: Traffic, test: Traffic) -> None:
    """Certify "no less right than the large model" from ten gold labels a class, half to learn and half to check."""
    seeds = range(1 if run.quick else 3)
    accuracy, local_share = [], []
    for seed in seeds:
        gold = _few(train, 10, seed)
        lessons = [Lesson(t, a, g) for t, a, g in zip(train.texts, train.answers, gold, strict=True)]
        learned = learn(lessons, Target("correctness", None), ClosedSetStudent, seed=seed)
        predicted = learned.student.predict(test.texts)
        local = predicted.familiar & (predicted.confidence >= learned.certificate.threshold)
        said = np.where(local, predicted.labels, test.answers)
        accuracy.append(float(np.mean([normalise(a) == b for a, b in zip(said, test.gold, strict=True)])))
        local_share.append(float(local.mean()))
    large = float(np.mean([normalise(a) == b for a, b in zip(test.answers, test.gold, strict=True)]))
    for name, values, peer in (
        ("correctness_system_accuracy", accuracy, ("the large model alone", large)),
        ("correctness_local_share", local_share, None),
    ):
        run.figure(
            name,
            float(np.median(values)),
            unit="share",
            better="higher",
            n=len(test.texts),
            seeds=len(seeds),
            low=min(values),
            high=max(values),
            peer=peer[0] if peer else None,
            peer_value=peer[1] if peer else None,
            peer_source="measured" if peer else None,
        )


def stream(run: Run) -> None:
    """All recorded calls in a shuffled order, learned from as they come in."""
    seeds = range(1 if run.quick else 3)
    shares, firsts, kept = [], [], []
    for seed in seeds:
        made = replay(recorded_calls(run, seed, n=4000 if run.quick else None), ClosedSetStudent, seed=seed)
        shares.append(made.local_share)
        firsts.append(float(made.first_local if made.first_local is not None else len(made.local)))
        kept.append(made.agreement)
    for name, values, unit, better, peer_value in (
        ("stream_local_share", shares, "share", "higher", 0.29),
        ("first_local_call", firsts, "calls", "lower", 3000),
    ):
        run.figure(
            name,
            float(np.median(values)),
            unit=unit,
            better=better,
            n=len(made.local),
            seeds=len(seeds),
            low=min(values),
            high=max(values),
            peer="Jevstiller 0.5.3",
            peer_value=peer_value,
            peer_source="published",
            kept=round(min(kept), 4),
        )
