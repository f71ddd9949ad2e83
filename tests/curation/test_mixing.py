"""Weights of domains: trainings of real small models, and the laws that carry their losses to a larger scale."""

import numpy as np
import pytest

from pilotfish.curation.mixing import ByteModel, doremi, presence, self_influence
from pilotfish.curation.scaling import AmountLaw, autoscale
from pilotfish.errors import InputError
from tests.curation.texts import prose


def test_mixtures_of_real_small_models():
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    noise = "".join(chr(c) for c in rng.integers(33, 127, 4000))
    domains = {"easy": "ab" * 2000, "prose": " ".join(prose(i) for i in range(6)), "noise": noise}
    size = {"width": 16, "window": 16, "batch": 9}
    weights = doremi(domains, 12, rate=5.0, **size)
    assert weights.sum() == pytest.approx(1)
    model = ByteModel(domains, **size)
    before = model.held_out(list(domains.values()), 8)
    after = model.train(np.ones(3), 15).held_out(list(domains.values()), 8)
    assert after.mean() < before.mean()
    import torch

    windows, _ = model.drawn([2, 0, 2])
    influence = self_influence(model, windows)
    # The gradient of a linear layer: errors of the softmax times what comes in.
    came = model.net["bytes"](windows[:, :-1]) + model.net["places"](torch.arange(16))[None]
    came = model.net["body"](came, mask=model.mask, is_causal=True)
    errors = torch.softmax(model.net["out"](came), -1) - torch.nn.functional.one_hot(windows[:, 1:], 256)
    expected = (torch.einsum("ntv,ntd->nvd", errors, came) / 16).flatten(1).pow(2).sum(1)
    assert influence == pytest.approx(expected.detach().numpy(), rel=1e-3)
    assert presence(domains, 4, **size)[1].shape == (3,)
    with pytest.raises(InputError, match="more text"):
        ByteModel({"a": "x"})
    # Weights averaged over the last steps are the mean of those after each.
    apart, seen = ByteModel(domains, seed=3, **size), []
    for _ in range(4):
        apart.train(np.ones(3), 1)
        seen.append([w.detach().clone() for w in apart.net.parameters()])
    whole = ByteModel(domains, seed=3, **size).train(np.ones(3), 4, averaged=0.5)
    for got, third, fourth in zip(whole.net.parameters(), *seen[2:], strict=True):
        assert torch.allclose(got, (third + fourth) / 2, atol=1e-6)


def test_a_policy_is_asked_before_each_round_and_trained_by():
    pytest.importorskip("torch")
    domains = {"easy": "ab" * 2000, "prose": " ".join(prose(i) for i in range(6))}
    size = {"width": 16, "window": 16, "batch": 9, "seed": 3}
    seen = []

    def policy(losses, done):
        seen.append((losses, done))
        return np.array([1.0, 0.0]) if done < 0.5 else np.array([0.25, 0.75])

    model, texts = ByteModel(domains, **size), list(domains.values())
    passed = model.train_by(policy, texts, 2, 3)
    assert passed.tolist() == [[1, 0], [0.25, 0.75]]
    assert [done for _, done in seen] == [0, 0.5]
    again = ByteModel(domains, **size)
    assert seen[0][0] == pytest.approx(again.held_out(texts))
    assert seen[1][0] == pytest.approx(again.train(passed[0], 3).held_out(texts))
    assert model.held_out(texts) == pytest.approx(again.train(passed[1], 3).held_out(texts))


def test_amounts_for_a_larger_scale_follow_their_laws():
    # The second domain is learned fast and to a floor: a larger scale has less use for it.
    true = [
        AmountLaw(1.0, 6.0, 0.3, 20.0, np.array([1.0, 0.05, 0.1])),
        AmountLaw(0.4, 40.0, 1.0, 20.0, np.array([0.02, 1.0, 0.02])),
        AmountLaw(1.5, 5.0, 0.3, 20.0, np.array([0.1, 0.02, 1.0])),
    ]
    rng = np.random.default_rng(0)

    def measured(amounts):
        return np.array([law.loss(amounts) for law in true]) * np.exp(0.003 * rng.normal(size=3))

    small, large = (autoscale(measured, [250, 1000], scale, 3) for scale in (1000, 4000))
    assert large.sum() == pytest.approx(1)
    assert large[1] < small[1] - 0.05

    def loss(weights):
        return np.mean([law.loss(4000 * weights) for law in true])

    best = min(loss(w) for w in rng.dirichlet(np.ones(3), 20_000))
    assert loss(large) - best < 0.2 * (loss(small) - best)
    with pytest.raises(InputError, match="two that rise"):
        autoscale(measured, [2, 1], 4, 3)
