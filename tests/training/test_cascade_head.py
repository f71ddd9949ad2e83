"""Heads trained for a cascade: the gradient, and what each aim changes."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.cascade import Cascade, Stage
from pilotfish.errors import InputError, NotFittedError
from pilotfish.rules import Threshold
from pilotfish.scorers.answers import StatedConfidence
from pilotfish.training.cascade_head import CascadeHead, cascade_loss
from pilotfish.types import Reply, Request


@pytest.mark.parametrize("price", [None, 0.2])
def test_gradient_equals_finite_differences(price):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.integers(0, 2, 7)
    wrong, keep = rng.integers(0, 2, 7).astype(float), rng.integers(0, 2, 7).astype(float)
    at = rng.normal(size=9)
    _, gradient = cascade_loss(at, x, y, wrong, keep, price, 0.01)
    for k in range(9):
        step = np.eye(9)[k] * 1e-6
        up, _ = cascade_loss(at + step, x, y, wrong, keep, price, 0.01)
        down, _ = cascade_loss(at - step, x, y, wrong, keep, price, 0.01)
        assert gradient[k] == pytest.approx((up - down) / 2e-6, abs=1e-5)


def test_loss_by_hand():
    x, zero = np.ones((1, 1)), np.zeros(3)
    loss, _ = cascade_loss(zero, x, np.array([0]), np.array([1.0]), np.ones(1), 0.2, 0.0)
    assert loss == pytest.approx(np.log(2) + 0.5 * 0.5 + 0.5 * 1.2)


def data(n=120):
    texts, labels, large = [], [], []
    for i in range(n):
        kind = i % 3
        texts.append(
            ("a fine film" if kind == 0 else "a dull film" if kind == 1 else "a strange film") + f" number {i}"
        )
        labels.append("good" if kind == 0 or (kind == 2 and i % 2) else "bad")
        large.append(labels[-1] if kind < 2 or i % 4 else "good" if labels[-1] == "bad" else "bad")
    return texts, labels, large


@pytest.mark.parametrize("head", [CascadeHead(), CascadeHead(aware=True), CascadeHead(gate=True, price=0.1)])
def test_heads_learn_and_answer_as_models(head):
    texts, labels, large = data()
    with pytest.raises(NotFittedError):
        head.predict(texts)
    head.fit(texts, labels, large)
    replies = head.generate([Request.of("a fine film number 500"), Request.of("a dull film number 501")])
    assert [r.text for r in replies] == ["good", "bad"]
    assert all(0 <= r.confidence <= 1 for r in replies)
    assert head.generate([]) == []


def test_the_gate_hands_on_what_the_large_model_knows_better():
    texts, labels, _ = data(240)
    head = CascadeHead(gate=True, price=0.1).fit(texts, labels, labels)
    _, sure = head.predict(["a fine film number 900", "a strange film number 901"])
    assert sure[0] > sure[1]

    class Large:
        def generate(self, requests):
            return [Reply("large") for _ in requests]

    cascade = Cascade([Stage(head, StatedConfidence(), Threshold(float(sure.mean())))], Large())
    replies = cascade.generate([Request.of("a fine film number 900"), Request.of("a strange film number 901")])
    assert [r.text for r in replies] == ["good", "large"]


def test_bad_examples_are_refused():
    with pytest.raises(InputError, match="one of each"):
        CascadeHead().fit(["a"], ["x", "y"], ["x"])
    with pytest.raises(InputError, match="at least two labels"):
        CascadeHead().fit(["a", "b"], ["x", "x"], ["x", "x"])
