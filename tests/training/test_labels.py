"""Teacher noise on made-up traffic whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.errors import InputError
from pilotfish.training.heads import KernelHead
from pilotfish.training.labels import confusion, denoise

N_CLASSES = 6


def _traffic(seed: int, n: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points around class centres; a teacher that takes class 0 for 1, half of 2 for 3, and errs at random in 5 %."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((N_CLASSES, 24))
    truth = rng.integers(N_CLASSES, size=n)
    X = (centres[truth] + rng.standard_normal((n, 24)) * 1.2).astype(np.float32)
    table = np.eye(N_CLASSES)
    table[0] = [0.2, 0.8, 0, 0, 0, 0]
    table[2] = [0, 0, 0.5, 0.5, 0, 0]
    table = 0.95 * table + 0.05 / N_CLASSES
    answers = np.array([rng.choice(N_CLASSES, p=table[y]) for y in truth])
    return X, truth, answers, table


def _few(truth: np.ndarray, n_each: int) -> np.ndarray:
    gold = np.full(truth.size, -1)
    for c in range(N_CLASSES):
        rows = np.flatnonzero(truth == c)[:n_each]
        gold[rows] = c
    return gold


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_gold_labels_undo_systematic_mistakes(seed: int) -> None:
    X, truth, answers, table = _traffic(seed)
    made = denoise(X, answers, _few(truth, 5), N_CLASSES, head=KernelHead(n_axes=24))
    believed = made.targets.argmax(axis=1)
    assert (answers == truth).mean() < 0.8
    assert (believed == truth).mean() > 0.9
    assert np.abs(made.confusion - table).max() < 0.2


def test_a_student_of_the_cleaned_labels_beats_gold_alone_and_naive_mixing() -> None:
    X, truth, answers, _ = _traffic(3)
    fit, test = np.arange(600), np.arange(600, 900)
    gold = _few(truth[fit], 2)
    known = gold >= 0
    eye = np.eye(N_CLASSES, dtype=np.float32)

    def right(points: np.ndarray, targets: np.ndarray) -> float:
        head = KernelHead(n_axes=24).fit(points, targets)
        return float((head.log_proba(X[test]).argmax(axis=1) == truth[test]).mean())

    cleaned = right(X[fit], denoise(X[fit], answers[fit], gold, N_CLASSES, head=KernelHead(n_axes=24)).targets)
    naive = right(X[fit], eye[np.where(known, gold, answers[fit])])
    alone = right(X[fit][known], eye[gold[known]])
    assert cleaned > naive + 0.05
    assert cleaned > alone + 0.02


def test_without_gold_random_mistakes_are_smoothed_out() -> None:
    rng = np.random.default_rng(0)
    X, truth, _, _ = _traffic(0)
    answers = np.where(rng.random(truth.size) < 0.25, rng.integers(N_CLASSES, size=truth.size), truth)
    believed = denoise(X, answers, np.full(truth.size, -1), N_CLASSES, head=KernelHead(n_axes=24)).targets.argmax(
        axis=1
    )
    assert (believed == truth).mean() > (answers == truth).mean() + 0.05


def test_answers_that_are_no_class_are_told_apart_by_their_text() -> None:
    X, truth, _, _ = _traffic(1)
    answers = np.where(truth == 4, N_CLASSES, truth)
    answers[np.flatnonzero(truth == 4)[:20]] = 4
    made = denoise(X, answers, _few(truth, 3), N_CLASSES, head=KernelHead(n_axes=24))
    assert (made.targets.argmax(axis=1)[answers == N_CLASSES] == 4).mean() > 0.95
    assert made.confusion.shape == (N_CLASSES, N_CLASSES + 1)
    assert made.confusion[4, N_CLASSES] > 0.5


def test_classes_without_gold_start_from_the_teacher() -> None:
    X, truth, answers, _ = _traffic(2)
    gold = _few(truth, 4)
    gold[gold == 5] = -1
    believed = denoise(X, answers, gold, N_CLASSES, head=KernelHead(n_axes=24)).targets.argmax(axis=1)
    assert (believed[truth == 5] == 5).mean() > 0.85


def test_gold_is_kept() -> None:
    X, truth, answers, _ = _traffic(0, n=200)
    gold = _few(truth, 3)
    made = denoise(X, answers, gold, N_CLASSES)
    np.testing.assert_array_equal(made.targets[gold >= 0].argmax(axis=1), gold[gold >= 0])
    np.testing.assert_array_equal(made.targets[gold >= 0].max(axis=1), 1)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_confusion_rows_are_distributions_and_match_counting(pairs: list[tuple[int, int]]) -> None:
    classes, answers = (np.array(values) for values in zip(*pairs, strict=True))
    targets = np.eye(3, dtype=np.float32)[classes]
    np.testing.assert_allclose(confusion(targets, answers, 4).sum(axis=1), 1, rtol=1e-5)
    plain = confusion(targets, answers, 4, prior=0, faith=0)
    for c in set(classes.tolist()):
        counted = [np.mean(answers[classes == c] == a) for a in range(4)]
        np.testing.assert_allclose(plain[c], counted, atol=1e-6)


def test_bad_input_is_named() -> None:
    X = np.zeros((3, 2), np.float32)
    with pytest.raises(InputError, match="one per call"):
        denoise(X, np.array([0, 1]), np.array([-1, -1, -1]), 2)
    with pytest.raises(InputError, match="class 5 of 2"):
        denoise(X, np.array([0, 1, 1]), np.array([-1, -1, 5]), 2)
