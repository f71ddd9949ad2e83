from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pilotfish.decoding.bridge import PROMPT, Bridged
from pilotfish.decoding.fused import Fused, FusedSession
from pilotfish.decoding.fusion import (
    ContextAware,
    Contrastive,
    Fusion,
    Mixture,
    Product,
    ProxyTuning,
    SourceContrastive,
)
from pilotfish.errors import InputError
from pilotfish.methods.build_decoder import without_context
from pilotfish.models.sessions import FunctionSession
from pilotfish.protocols import LogProbs
from pilotfish.types import Request
from tests.decoding.small import LETTERS, Letters, Scripted, random_model


def logs(*rows: list[float]) -> LogProbs:
    return np.log(np.array(rows, dtype=np.float32))


ZERO: list[Callable[[], Fusion]] = [
    lambda: Contrastive(alpha=0, beta=0),
    lambda: ContextAware(alpha=0),
    lambda: ContextAware(alpha=2.0, gate=1.0),
    lambda: ContextAware(alpha=0, copied=True),
    lambda: SourceContrastive(0),
    lambda: ProxyTuning(0),
    lambda: Product(0),
    lambda: Mixture(0),
]


@pytest.mark.parametrize("make", ZERO)
def test_zero_weight_is_the_base(make: Callable[[], Fusion]) -> None:
    fusion = make()
    models = {role: random_model(i) for i, role in enumerate(fusion.roles)}
    base = models[fusion.roles[0]].session().extend([1, 2, 3]).log_probs()
    fused = Fused(fusion, models).session().extend([1, 2, 3]).log_probs()
    assert fused == pytest.approx(base, abs=1e-5)


def test_formulas_by_hand() -> None:
    p, q, r = [0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]
    one, other, third = logs(p), logs(q), logs(r)

    def expected(weights: list[float]) -> list[float]:
        return [w / sum(weights) for w in weights]

    contrast = Contrastive(0.5, 1.0).fuse({"expert": one, "amateur": other})
    assert np.exp(contrast[0]) == pytest.approx(expected([0.25 / 0.6, 0.09 / 0.3, 0.0]), abs=1e-5)
    aware = ContextAware(1.0, adaptive=False).fuse({"with_context": one, "without_context": other})
    assert np.exp(aware[0]) == pytest.approx(expected([0.25 / 0.6, 0.09 / 0.3, 0.04 / 0.1]), abs=1e-5)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    bits = sum(a * np.log2(a / m) / 2 + b * np.log2(b / m) / 2 for a, b, m in zip(p, q, middle, strict=True))
    # The third token has less than .5 of the first's probability given the context; the second has more.
    among = ContextAware(1.0, adaptive=False, plausible=0.5).fuse({"with_context": one, "without_context": other})
    assert np.exp(among[0]) == pytest.approx(expected([0.25 / 0.6, 0.09 / 0.3, 0.0]), abs=1e-5)
    # Only the third token is brought: the first falls as ever, the second stays, neither may rise.
    asked = {"with_context": [1, 2, 2, 0], "without_context": [0, 2, 1]}
    only = ContextAware(1.0, adaptive=False, copied=True)
    copied = only.begin(asked).fuse({"with_context": one, "without_context": other})
    assert np.exp(copied[0]) == pytest.approx(expected([0.25 / 0.6, 0.3, 0.04 / 0.1]), abs=1e-5)
    untold = only.begin({role: [2, 1] for role in asked}).fuse({"with_context": one, "without_context": other})
    assert np.exp(untold[0]) == pytest.approx(expected([0.25 / 0.6, 0.3, 0.2]), abs=1e-5)
    adaptive = ContextAware(2.0).fuse({"with_context": one, "without_context": other})
    weights = [a * (a / b) ** (2 * bits) for a, b in zip(p, q, strict=True)]
    assert np.exp(adaptive[0]) == pytest.approx(expected(weights), abs=1e-5)
    source = SourceContrastive(0.5).fuse({"source": one, "wrong_source": other})
    assert np.exp(source[0]) == pytest.approx(expected([0.2, 0.15, 0.15]), abs=1e-5)
    proxy = ProxyTuning(1.0).fuse({"base": one, "expert": other, "anti_expert": third})
    assert np.exp(proxy[0]) == pytest.approx(expected([0.5 * 3, 0.3, 0.2 / 5]), abs=1e-5)
    log_linear = Mixture(0.5).fuse({"base": one, "other": other})
    assert np.exp(log_linear[0]) == pytest.approx(expected([0.3**0.5, 0.3, 0.02**0.5]), abs=1e-5)
    linear = Mixture(0.25, linear=True).fuse({"base": one, "other": other})
    assert np.exp(linear[0]) == pytest.approx([0.525, 0.3, 0.175], abs=1e-5)
    product = Product(2.0).fuse({"base": one, "adapter": other})
    assert np.exp(product[0]) == pytest.approx(expected([0.5 * 0.36, 0.3 * 0.09, 0.2 * 0.01]), abs=1e-5)


def test_the_gate_leaves_alone_what_agrees() -> None:
    same, far = logs([0.5, 0.5], [0.9, 0.1]), logs([0.5, 0.5], [0.1, 0.9])
    fused = ContextAware(1.0, gate=0.1).fuse({"with_context": same, "without_context": far})
    assert fused[0] == pytest.approx(same[0], abs=1e-6)
    assert fused[1, 0] > same[1, 0]


@pytest.mark.parametrize("gate", [None, 0.6, 1.0])
def test_a_fused_session_rewinds_forks_and_gates(gate: float | None) -> None:
    fusion = ProxyTuning(1.0)
    models = {role: random_model(i) for i, role in enumerate(fusion.roles)}
    whole = Fused(fusion, models, gate=gate).session().extend([1, 2, 3, 4, 5]).log_probs()
    session = Fused(fusion, models, gate=gate).session()
    session.extend([1, 2, 7, 7])
    session.rewind(2)
    twin = session.fork()
    rows = [session.extend([token], 1).log_probs()[0] for token in (3, 4, 5)]
    assert np.array(rows) == pytest.approx(whole[2:], abs=1e-5)
    assert twin.extend([3, 4, 5]).log_probs() == pytest.approx(whole[2:], abs=1e-5)


def test_views_read_their_own_prompt() -> None:
    seen: list[tuple[int, ...]] = []
    base = random_model(0)

    def noted(tokens: object) -> LogProbs:
        seen.append(tuple(tokens))  # type: ignore[arg-type]
        return base.function(tokens)  # type: ignore[arg-type]

    fusion = ContextAware(1.0)
    fused = Fused(
        fusion,
        {"with_context": base, "without_context": Scripted(noted)},
        views={"without_context": lambda request: request.replace(messages=Request.of("h").messages)},
    )
    session, prompt = fused.begin(Request.of("abc"))
    session.extend(prompt, 1)
    session.extend([5], 1)
    assert prompt == [0, 1, 2]
    assert seen == [(7,), (7, 5)]


@pytest.mark.parametrize("order", [LETTERS, LETTERS[::-1]])
def test_only_what_the_context_brings_is_raised(order: str) -> None:
    rng = np.random.default_rng(0)
    told, memory = (np.log(rng.dirichlet(np.ones(9))).astype(np.float32) for _ in range(2))
    letters = Letters([*(c.encode() for c in order), b""])  # in another order a vocabulary is another: bridged
    own = np.append(memory[:8][[order.index(c) for c in LETTERS]], memory[8])
    fused = Fused(
        ContextAware(1.0, adaptive=False, copied=True),
        {"with_context": Scripted(lambda _: told), "without_context": Scripted(lambda _: memory, letters)},
        views={"without_context": without_context},
    )

    def moved(session: FusedSession, prompt: list[int]) -> LogProbs:
        return session.extend(prompt, 1).log_probs()[0] - told

    begun = [fused.begin(Request.of("abc", system)) for system in ("dab", None)]
    shift = told - own
    for brought, row in zip(([0, 1, 3], []), (moved(*one) for one in begun), strict=True):
        expected = np.where(np.isin(range(9), brought), shift, np.minimum(shift, 0))
        assert row - row[2] == pytest.approx(expected - expected[2], abs=1e-3)


def test_a_bridge_shares_out_the_own_probabilities() -> None:
    own = Letters([b"ab", b"a", b"b", b"c", b""])
    model = random_model(0, n=5)
    model.tokenizer = own
    other = Letters([b"a", b"b", b"ab", b"abc", b"zz", b""])
    session = Bridged(model, other).session([3])
    rows = np.exp(session.extend([0, 1, 2]).log_probs())
    p = {tokens: np.exp(model.function(tokens)) for tokens in ((3,), (3, 0), (3, 1), (3, 0, 0))}
    # "ab" is number 2 and "abc" number 3 of the other vocabulary: 1/3 to 1/4 of what the own "ab" has.
    shares = np.zeros((6, 5))
    shares[0, 1] = shares[1, 2] = shares[5, 4] = 1
    shares[2, 0], shares[3, 0] = 4 / 7, 3 / 7
    # After "a" the model may have been about to write "ab": then "b" comes.
    going_on = p[3, 1] * p[3,][1]
    going_on[2] += p[3,][0]
    for row, wanted in ((rows[0], shares @ going_on), (rows[1], shares @ p[3, 0]), (rows[2], shares @ p[3, 0, 0])):
        assert row == pytest.approx(wanted / wanted.sum(), abs=1e-5)
    alone = Bridged(model, other).session([3])
    one_by_one = np.exp([alone.extend([token]).log_probs()[0] for token in (0, 1, 2)])
    assert one_by_one == pytest.approx(rows, abs=1e-5)

    class OneByOne(FunctionSession):
        takes_trees = False

    model.session = lambda: OneByOne(model.function)  # type: ignore[method-assign]
    assert np.exp(Bridged(model, other).session([3]).extend([0, 1, 2]).log_probs()) == pytest.approx(rows, abs=1e-5)
    session.rewind(2)
    assert np.exp(session.extend([1, 2]).log_probs()) == pytest.approx(rows[1:], abs=1e-5)
    assert session.fork().extend([0]).log_probs().shape == (1, 6)


def test_a_vocabulary_in_small_pieces_adds_up_to_the_same_text() -> None:
    """Written letter by letter or in the model's own tokens, a text has the same probability."""
    model = random_model(0, n=5, order=3)
    model.tokenizer = Letters([b"ab", b"a", b"b", b"c", b""])
    letters = Letters([b"a", b"b", b"c", b""])
    logs = Bridged(model, letters).session([4]).extend([PROMPT, 0, 1]).log_probs()
    by_letter = logs[0][0] + logs[1][1] + logs[2][2]
    p = {tokens: model.function(tokens) for tokens in ((4,), (4, 0), (4, 1))}
    whole = p[4,][0]
    in_pieces = p[4,][1] + p[4, 1][2]
    assert by_letter == pytest.approx(np.logaddexp(whole, in_pieces) + p[4, 0][3], abs=1e-4)


def test_a_bridge_says_nothing_in_mid_character() -> None:
    model = random_model(0, n=4)
    model.tokenizer = Letters(["é".encode(), b"a", b"b", b""])
    other = Letters(["é".encode()[:1], "é".encode()[1:], b"a", b""])
    rows = Bridged(model, other).session([2]).extend([2, 0, 1]).log_probs()
    assert rows[1] == pytest.approx(np.full(4, -np.log(4)), abs=1e-5)
    assert rows[2][2] - rows[2][1] > 40  # a byte that only continues cannot come


@pytest.mark.parametrize(
    "make",
    [
        lambda: Contrastive(alpha=2),
        lambda: Contrastive(beta=-1),
        lambda: ContextAware(plausible=1.5),
        lambda: ProxyTuning(float("nan")),
        lambda: Fused(Product(), {"base": random_model(0), "adapter": random_model(1)}, gate=0.0),
    ],
)
def test_what_is_out_of_range_is_told(make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"alpha|beta|gate|plausible"):
        make()
