from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pilotfish.decoding.acceptance import Draft, Lossless, Sampling, Typical
from pilotfish.errors import InputError
from pilotfish.models.sessions import ArrayLogits
from tests.decoding.small import random_model

N = 9


def _p_value(counts: np.ndarray, p: np.ndarray) -> float:
    kept = p > 0
    assert counts[~kept].sum() == 0
    return float(stats.chisquare(counts[kept], p[kept] * counts.sum() / p[kept].sum()).pvalue)


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, 0.8), Sampling(1.5, 0.95)])
def test_what_is_written_has_the_targets_distribution(sampling: Sampling, drawn: bool) -> None:
    """Pairs of tokens, drafted by another model, against the product of the target's probabilities."""
    target, drafter = random_model(0), random_model(1)
    rng = np.random.default_rng(7)
    first = np.array([target.function([0])])
    p1 = sampling.probabilities(first)[0]
    seconds = np.array([target.function([0, a]) for a in range(N)])
    p2 = sampling.probabilities(seconds)
    q = sampling.probabilities(np.array([drafter.function([0])]))
    counts = np.zeros((N, N))
    acceptance = Lossless(sampling)
    n_accepted = 0
    for _ in range(8_000):
        token = int(rng.choice(N, p=q[0])) if drawn else int(q[0].argmax())
        draft = Draft([token], q if drawn else None)
        path, following = acceptance.accept(ArrayLogits(np.stack([first[0], seconds[token]])), draft, rng)
        n_accepted += len(path)
        # After a rejection the second token comes from the next pass.
        pair = (token, following) if path else (following, int(rng.choice(N, p=p2[following])))
        counts[pair] += 1
    assert n_accepted < 8_000
    assert _p_value(counts.ravel(), (p1[:, None] * p2).ravel()) > 1e-3
    expected = np.minimum(p1, q[0]).sum() if drawn else p1[q[0].argmax()]
    assert n_accepted / 8_000 == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, 0.8)])
def test_what_a_tree_writes_has_the_targets_distribution(sampling: Sampling) -> None:
    """Two drawn branches and a chosen one side by side, and one token after the first."""
    target = random_model(0)
    rng = np.random.default_rng(11)
    first = target.function([0])
    seconds = np.array([target.function([0, a]) for a in range(N)])
    p1 = sampling.probabilities(first[None])[0]
    p2 = sampling.probabilities(seconds)
    q = [Sampling(1.5).probabilities(random_model(seed).function([0])[None])[0] for seed in (1, 2)]
    counts = np.zeros((N, N))
    n_accepted = [0, 0, 0, 0]
    chosen = int(np.argsort(p1)[-2])
    for _ in range(8_000):
        a, b = (int(rng.choice(N, p=row)) for row in q)
        after = int(p2[a].argmax())
        rows = np.array([q[0], q[1], np.eye(N)[chosen], np.eye(N)[after]])
        draft = Draft([a, b, chosen, after], rows, parents=[-1, -1, -1, 0])
        places = [[0], [0, a], [0, b], [0, chosen], [0, a, after]]
        logits = ArrayLogits(np.array([target.function(place) for place in places]))
        path, following = Lossless(sampling).accept(logits, draft, rng)
        for place in path:
            n_accepted[place] += 1
        written = [*(draft.tokens[i] for i in path), following]
        if len(written) == 1:
            written.append(int(rng.choice(N, p=p2[written[0]])))
        counts[written[0], written[1]] += 1
    assert min(n_accepted) > 0
    assert _p_value(counts.ravel(), (p1[:, None] * p2).ravel()) > 1e-3


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.1, 3.0), st.floats(0.05, 1.0))
def test_top_p_keeps_the_fewest_tokens_that_suffice(seed: int, temperature: float, top_p: float) -> None:
    logs = random_model(seed).function([1, 2])[None]
    whole = Sampling(temperature).probabilities(logs)[0]
    kept = Sampling(temperature, top_p).probabilities(logs)[0] > 0
    assert whole[kept].sum() >= top_p - 1e-9
    assert whole[kept].sum() - whole[kept].min() < top_p + 1e-9
    assert whole[kept].min() >= whole[~kept].max(initial=0.0)


def test_typical_accepts_by_entropy() -> None:
    sure = np.log(np.array([[0.9, 0.06, 0.04], [0.9, 0.06, 0.04]], dtype=np.float32))
    even = np.log(np.full((2, 3), 1 / 3, dtype=np.float32))
    rng = np.random.default_rng(0)
    assert Typical(epsilon=0.3, delta=0.2).accept(ArrayLogits(sure), Draft([1]), rng)[0] == []
    assert Typical(epsilon=0.3, delta=0.05).accept(ArrayLogits(sure), Draft([1]), rng)[0] == [0]
    assert Typical(epsilon=0.3, delta=0.2).accept(ArrayLogits(even), Draft([1]), rng)[0] == [0]
    # exp(-entropy) of the even row is 1/3: the threshold is delta / 3.
    assert Typical(epsilon=0.5, delta=1.01).accept(ArrayLogits(even), Draft([1]), rng)[0] == []


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}])
def test_what_is_out_of_range_is_told(fields: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(fields))):
        Sampling(**fields)
