"""Heads against formulas worked out another way."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.errors import InputError
from pilotfish.training.heads import KernelHead, LeaveOneOut, MlpHead, log_softmax


def _blobs(n: int, n_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    X = np.eye(n_classes, 8)[y] * 2 + rng.standard_normal((n, 8)) * 0.5
    return X.astype(np.float32), np.eye(n_classes, dtype=np.float32)[y]


def test_kernel_scores_solve_the_ridge_equations() -> None:
    X, targets = _blobs(30)
    head = KernelHead(n_axes=8, gamma=1.5, ridge=0.3).fit(X, targets)
    unit = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float64)
    gram = np.exp(1.5 * (unit @ unit.T - 1))
    expected = gram @ np.linalg.solve(gram + 0.3 * np.eye(30), targets - 1 / 3)
    scores, nearest = head.scores(X)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    np.testing.assert_allclose(nearest, 1, atol=1e-5)


def test_leave_one_out_is_fitting_without_the_call() -> None:
    X, targets = _blobs(20)
    settings = KernelHead(n_axes=8)
    shortcut = LeaveOneOut(settings, X).log_proba(targets)
    for i in (0, 7, 19):
        rest = np.arange(20) != i
        # The closed form centres on the class prior, which does not depend on the call left out.
        alone = KernelHead(n_axes=8).fit(X[rest], targets[rest]).log_proba(X[i : i + 1])
        np.testing.assert_allclose(shortcut[i], alone[0], atol=1e-3)


def test_tune_finds_the_temperature_that_scores_were_sharpened_by() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4000, 3)).astype(np.float32) * 0.2
    proba = np.exp(log_softmax(scores * np.float32(9)))
    y = np.array([rng.choice(3, p=p / p.sum()) for p in proba.astype(np.float64)])
    assert KernelHead().tune(scores, np.eye(3, dtype=np.float32)[y]).temperature == pytest.approx(9, rel=0.15)


def test_network_gradients_are_those_of_the_loss() -> None:
    X, targets = _blobs(12)
    head = MlpHead(n_hidden=5, least_steps=20, dropout=(0.0, 0.0)).fit(X, targets)
    head.weights_ = [w.astype(np.float64) for w in head.weights_]

    def loss() -> float:
        w1, b1, w2, b2 = head.weights_
        return float(-(targets * log_softmax(np.maximum(X @ w1 + b1, 0) @ w2 + b2)).sum(axis=1).mean())

    gradients = head._gradients(X, targets, np.random.default_rng(0))
    for w, g in zip(head.weights_, gradients, strict=True):
        place = np.unravel_index(np.abs(g).argmax(), g.shape)
        kept = w[place]
        w[place] = kept + 1e-5
        up = loss()
        w[place] = kept - 1e-5
        slope = (up - loss()) / 2e-5
        w[place] = kept
        assert slope == pytest.approx(float(g[place]), rel=1e-3)


def test_network_learns_and_the_same_seed_gives_the_same_weights() -> None:
    X, targets = _blobs(120)
    first, again, other = (MlpHead(n_hidden=16, least_steps=270, seed=s).fit(X, targets) for s in (1, 1, 2))
    assert (first.log_proba(X).argmax(1) == targets.argmax(1)).mean() > 0.95
    for a, b in zip(first.weights_, again.weights_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.weights_[0], other.weights_[0])


@pytest.mark.parametrize("head", [KernelHead(), MlpHead()])
def test_heads_reject_unequal_lengths(head: KernelHead | MlpHead) -> None:
    with pytest.raises(InputError, match="one row per point"):
        head.fit(np.zeros((3, 2), np.float32), np.zeros((2, 2), np.float32))
