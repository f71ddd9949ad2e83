"""The student of closed answer sets: what it promises about answers, confidence, bytes and bad input."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pilotfish import features
from pilotfish.answers import normalise
from pilotfish.errors import InputError, IntegrityError, NotFittedError
from pilotfish.protocols import Model
from pilotfish.training.closed_set import ClosedSetStudent, _told
from pilotfish.training.reader import Calibration
from pilotfish.types import Request
from tests.models.fixtures import pulled

WORDS = {
    "Cancel transfer": ["cancel", "stop", "revoke", "transfer", "payment"],
    "Exchange rate": ["exchange", "rate", "convert", "currency", "euro"],
    "card_lost": ["card", "lost", "stolen", "missing", "wallet"],
}


def _calls(n: int, seed: int = 0, noise: float = 0.0) -> tuple[list[str], list[str], list[str]]:
    rng = random.Random(seed)
    texts, answers, gold = [], [], []
    for _ in range(n):
        label = rng.choice(sorted(WORDS))
        words = [rng.choice(WORDS[label]) for _ in range(3)] + [rng.choice(["please", "now", "my", "the", "help"])]
        rng.shuffle(words)
        texts.append(" ".join(words))
        gold.append(label)
        answers.append(rng.choice(sorted(WORDS)) if rng.random() < noise else label)
    return texts, answers, gold


@pytest.fixture(scope="module")
def student() -> ClosedSetStudent:
    texts, answers, _ = _calls(240)
    return ClosedSetStudent("ngrams", n_axes=64).fit(texts, answers)


def test_answers_in_the_large_models_own_words(student: ClosedSetStudent) -> None:
    texts, answers, _ = _calls(60, seed=1)
    predicted = student.predict(texts)
    assert np.mean([a == b for a, b in zip(predicted.labels, answers, strict=True)]) > 0.95
    assert set(predicted.labels) == set(WORDS)
    assert student.known == {normalise(label) for label in WORDS}


def test_it_is_a_model_whose_reply_carries_the_confidence(student: ClosedSetStudent) -> None:
    assert isinstance(student, Model)
    reply = student.generate([Request.of("convert euro currency")])[0]
    assert reply.text == "Exchange rate"
    assert reply.confidence == pytest.approx(student.predict(["convert euro currency"]).confidence[0])
    assert student.generate([]) == []


def test_probabilities_and_confidence_lie_in_the_unit_interval(student: ClosedSetStudent) -> None:
    texts = ["", "\ud800", "card " * 5000, "xyzzy", "cancel the payment"]
    proba = student.predict_proba(texts)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-4)
    confidence = student.predict(texts).confidence
    assert np.all((confidence >= 0) & (confidence <= 1))
    assert student.predict([]).labels == []


def test_strange_texts_are_not_familiar(student: ClosedSetStudent) -> None:
    usual, _, _ = _calls(50, seed=2)
    assert student.predict(usual).familiar.mean() > 0.9
    assert not student.predict(["Qu'est-ce que le théorème de Gödel ?", "0xDEADBEEF 0xCAFE"]).familiar.any()


def test_confidence_is_calibrated_where_the_large_model_is_noisy() -> None:
    texts, answers, _ = _calls(1500, noise=0.3)
    student = ClosedSetStudent("ngrams", n_axes=64).fit(texts[:1000], answers[:1000])
    predicted = student.predict(texts[1000:])
    agrees = np.mean([a == b for a, b in zip(predicted.labels, answers[1000:], strict=True)])
    # A random answer is right by chance in a third of the noise: 0.7 + 0.3 / 3.
    assert agrees == pytest.approx(0.8, abs=0.06)
    assert predicted.confidence.mean() == pytest.approx(agrees, abs=0.06)


def test_confidence_is_that_of_calls_drawn_at_random() -> None:
    easy, hard = _calls(400, noise=0.0), _calls(400, seed=1, noise=0.5)
    drawn = [True] * 400 + [False] * 400
    student = ClosedSetStudent("ngrams", n_axes=64).fit(easy[0] + hard[0], easy[1] + hard[1], drawn=drawn)
    texts, answers, _ = _calls(400, seed=2)
    predicted = student.predict(texts)
    assert np.mean([a == b for a, b in zip(predicted.labels, answers, strict=True)]) > 0.95
    assert predicted.confidence.mean() > 0.95
    with pytest.raises(InputError, match="drawn has 3 entries for 800 texts"):
        student.fit(easy[0] + hard[0], easy[1] + hard[1], drawn=[True] * 3)


def test_gold_makes_it_right_where_the_large_model_is_wrong() -> None:
    texts, _, gold = _calls(600)
    answers = ["Cancel transfer" if label == "card_lost" and i % 5 else label for i, label in enumerate(gold)]
    known: list[str | None] = [label if i < 45 else None for i, label in enumerate(gold)]
    fresh, _, truth = _calls(100, seed=3)
    naive = ClosedSetStudent("ngrams", n_axes=64).fit(texts, answers).predict(fresh).labels
    mended = ClosedSetStudent("ngrams", n_axes=64).fit(texts, answers, known).predict(fresh).labels
    assert np.mean([a == b for a, b in zip(naive, truth, strict=True)]) < 0.8
    assert np.mean([a == b for a, b in zip(mended, truth, strict=True)]) > 0.95


def test_saved_and_loaded_it_says_the_same_and_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    texts, answers, _ = _calls(120)
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        ClosedSetStudent("ngrams", n_axes=64, seed=seed).fit(texts, answers).save(folder)
    a, b, c = ((folder / "student.npz").read_bytes() for folder in folders)
    assert a == b != c
    assert (folders[0] / "student.json").read_text() == (folders[1] / "student.json").read_text()
    assert sorted(p.name for p in folders[0].iterdir()) == ["student.json", "student.npz"]
    loaded, fitted = ClosedSetStudent.load(folders[0]), ClosedSetStudent("ngrams", n_axes=64).fit(texts, answers)
    one, two = loaded.predict(texts[:20]), fitted.predict(texts[:20])
    assert one.labels == two.labels
    np.testing.assert_array_equal(one.confidence, two.confidence)
    np.testing.assert_array_equal(one.familiar, two.familiar)


def test_a_damaged_or_foreign_folder_is_refused(student: ClosedSetStudent, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable student"):
        ClosedSetStudent.load(tmp_path)
    student.save(tmp_path)
    arrays = tmp_path / "student.npz"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match="not the file that was saved"):
        ClosedSetStudent.load(tmp_path)
    arrays.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        ClosedSetStudent.load(tmp_path)
    plain = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps({**plain, "version": 99}))
    with pytest.raises(InputError, match="upgrade Pilotfish"):
        ClosedSetStudent.load(tmp_path)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one per call"):
        ClosedSetStudent("ngrams", n_axes=64).fit(["a", "b"], ["x"])
    with pytest.raises(InputError, match="at least 2 are needed"):
        ClosedSetStudent("ngrams", n_axes=64).fit(["a", "b", "c"], ["x", "x", "y"])
    with pytest.raises(InputError, match="features"):
        ClosedSetStudent("words").fit(["a"], ["x"])  # type: ignore[arg-type]
    for use in (lambda s: s.predict(["a"]), lambda s: s.save(tmp_path), lambda s: s.known):
        with pytest.raises(NotFittedError, match="fit first"):
            use(ClosedSetStudent())


def test_very_few_calls_are_enough_to_learn() -> None:
    student = ClosedSetStudent("ngrams", n_axes=64).fit(
        ["card lost", "lost card", "euro rate", "rate euro"], ["a", "a", "b", "b"]
    )
    assert student.predict(["my card is lost", "the euro rate"]).labels == ["a", "b"]


def test_calibration_keeps_ranks_and_recovers_known_odds() -> None:
    rng = np.random.default_rng(0)
    top = rng.uniform(0.3, 0.999, 20_000)
    truth = 1 / (1 + np.exp(-(0.5 * np.log(top) - 1.5 * np.log1p(-top) - 1)))
    fitted = Calibration().fit(top, rng.random(20_000) < truth)
    np.testing.assert_allclose(fitted.predict(top), truth, atol=0.03)
    assert np.all(np.diff(fitted.predict(np.linspace(0.01, 0.99, 50))) > 0)


def _recorded(data_dir: Path, n_fit: int, n_test: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    with gzip.open(data_dir / "banking77" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    return rows[:n_fit], rows[n_fit : n_fit + n_test]


@pytest.fixture
def light_encoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One layer of the small encoder stands for it, and the whole of it for the large one, too heavy for a test."""
    model = str(pulled("all-minilm-l6-v2"))
    monkeypatch.setitem(features._ENCODERS, "encoder", (model, ("mean@1", "max@1", "mean@0")))
    monkeypatch.setitem(features._ENCODERS, "large", (model, ("mean",)))
    features._encoder.cache_clear()
    yield
    features._encoder.cache_clear()


@pytest.mark.usefixtures("light_encoders")
def test_a_large_encoder_reads_the_doubtful_calls_alone(data_dir: Path, tmp_path: Path) -> None:
    fit, test = _recorded(data_dir, 900, 400)
    calls = [r["text"] for r in fit], [r["llm"] for r in fit]
    texts = [r["text"] for r in test]
    larger, small = (ClosedSetStudent(kind, n_axes=128).fit(*calls) for kind in ("large", "encoder"))
    low, high = larger.doubtful_
    assert len(larger.readers_) == 3
    assert 0 < low < high < 1
    found, plain = larger.predict(texts), small.predict(texts)
    changed = found.confidence != plain.confidence
    assert 0.1 < changed.mean() < 0.45
    assert np.all((plain.confidence[changed] >= low) & (plain.confidence[changed] < high))
    larger.save(tmp_path)
    again = ClosedSetStudent.load(tmp_path).predict(texts)
    assert again.labels == found.labels
    np.testing.assert_allclose(again.confidence, found.confidence, atol=1e-6)
    # Nothing is doubtful of calls that are all sure: the large encoder is not asked, and not kept.
    sure = ClosedSetStudent("large", n_axes=64).fit(*_calls(240)[:2])
    assert len(sure.readers_) == 2


@pytest.mark.usefixtures("light_encoders")
def test_a_language_model_is_told_the_answers_and_kept_where_it_orders_doubtful_calls_better(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # It is played by a table of the large model's answers.
    fit, test = _recorded(data_dir, 900, 400)
    answers = {r["text"]: r["llm"] for r in fit + test}
    names = sorted(set(answers.values()))
    told: list[str] = []

    class Knowing:
        n_dimensions = len(names)

        def __init__(self, instruction: str) -> None:
            told.append(instruction)

        def embed(self, texts: Sequence[str], progress: object = None) -> NDArray[np.float32]:
            return np.eye(len(names), dtype=np.float32)[[names.index(answers[text]) for text in texts]]

    monkeypatch.setattr(features, "_language", Knowing)
    texts = [r["text"] for r in test]
    student = ClosedSetStudent("language", n_axes=128).fit([r["text"] for r in fit], [r["llm"] for r in fit])
    assert [reader.features for reader in student.readers_] == ["static", "encoder", "large", "language"]
    lines = told[0].splitlines()
    assert lines[1:] == ["", *student.surfaces_]
    found = student.predict(texts)
    low, high = student.doubtful_
    first = (
        ClosedSetStudent("encoder", n_axes=128).fit([r["text"] for r in fit], [r["llm"] for r in fit]).predict(texts)
    )
    doubtful = (first.confidence >= low) & (first.confidence < high)
    hits = [[normalise(a) == normalise(r["llm"]) for a, r in zip(p.labels, test, strict=True)] for p in (first, found)]
    before, after = np.array(hits)
    assert after[doubtful].mean() > before[doubtful].mean() + 0.1
    np.testing.assert_array_equal(after[~doubtful], before[~doubtful])
    student.save(tmp_path)
    again = ClosedSetStudent.load(tmp_path).predict(texts)
    np.testing.assert_allclose(again.confidence, found.confidence, atol=1e-6)


def test_a_language_model_is_told_the_instruction_or_the_answers_as_far_as_they_fit() -> None:
    assert _told("Name the intent.", ["a", "b"]) == "Name the intent."
    assert _told("", ["a", "b"]).splitlines()[1:] == ["", "a", "b"]
    assert len(_told("", [f"answer {i} of very many" for i in range(2_000)])) == 6_000


def test_students_of_the_version_before_are_read(student: ClosedSetStudent, tmp_path: Path) -> None:
    student.save(tmp_path)
    plain = json.loads((tmp_path / "student.json").read_text(encoding="utf-8"))
    for stage in plain["stages"]:
        del stage["params"]["instruction"], stage["space"]["instruction"]
    (tmp_path / "student.json").write_text(json.dumps(plain | {"version": 3}), encoding="utf-8")
    assert ClosedSetStudent.load(tmp_path).predict(["stop my payment"]).labels == ["Cancel transfer"]


def test_real_calls_of_a_frontier_model_with_static_features(data_dir: Path) -> None:
    fit, test = _recorded(data_dir, 2000, 600)
    student = ClosedSetStudent("static", n_axes=256).fit([r["text"] for r in fit], [r["llm"] for r in fit])
    predicted = student.predict([r["text"] for r in test])
    agrees = np.array([normalise(a) == normalise(r["llm"]) for a, r in zip(predicted.labels, test, strict=True)])
    assert agrees.mean() > 0.74
    surest = np.argsort(-predicted.confidence)[:180]
    assert agrees[surest].mean() > 0.95
    assert abs(predicted.confidence.mean() - agrees.mean()) < 0.06
