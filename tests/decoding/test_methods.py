"""Every named method of decoding is built of parts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pilotfish.decoding.copying import Lookup
from pilotfish.decoding.fused import Fused
from pilotfish.decoding.fusion import ContextAware
from pilotfish.decoding.search import BlackBoxSearch, ChunkSearch, LogRatio
from pilotfish.errors import ContextLengthError, InputError
from pilotfish.methods.adaptation import comblm, inference_policy_adapter, proxy_tuning
from pilotfish.methods.build_decoder import without_context
from pilotfish.methods.repair import (
    contrastive_decoding,
    contrastive_grounding,
    induce_then_contrast,
    private_contrast,
)
from pilotfish.methods.speculative import (
    cross_vocabulary,
    lookup_drafting,
    speculative_decoding,
    speculative_sampling,
    speed_controller,
)
from pilotfish.methods.weak_to_strong import weak_to_strong_search
from pilotfish.models.ngram import NGramModel
from pilotfish.models.sessions import ArrayLogits, FunctionSession
from pilotfish.protocols import LogProbs, Model
from pilotfish.training.combination import LearnedCombination, combination_features
from pilotfish.types import Request
from tests.decoding.small import Letters, Scripted, random_model, saying

ASK = Request.of("abc", temperature=0, max_tokens=12)


def _combination() -> LearnedCombination:
    rng = np.random.default_rng(0)
    return LearnedCombination().fit(rng.normal(size=(50, 4)), -rng.random(50), -rng.random(50))


@pytest.mark.parametrize(
    "made",
    [
        speculative_decoding(random_model(0), random_model(1)),
        speculative_sampling(random_model(0), random_model(1)),
        lookup_drafting(random_model(0), ["abcabc"]),
        cross_vocabulary(random_model(0), random_model(1)),
        cross_vocabulary(random_model(0), random_model(1), by="token"),
        speed_controller(random_model(0), [Lookup()]),
        proxy_tuning(random_model(0), random_model(1), random_model(2)),
        comblm(random_model(0), random_model(1), _combination()),
        inference_policy_adapter(random_model(0), random_model(1)),
        contrastive_decoding(random_model(0), random_model(1)),
        contrastive_grounding(random_model(0)),
        contrastive_grounding(random_model(0), wrong=0.7),
        induce_then_contrast(random_model(0), random_model(1)),
        private_contrast(random_model(0), random_model(1)),
        weak_to_strong_search(random_model(0), random_model(1), random_model(2)),
    ],
)
def test_every_method_answers(made: Model) -> None:
    assert isinstance(made, Model)
    (reply,) = made.generate([ASK.replace(temperature=1.0 if isinstance(made, ChunkSearch) else 0)])
    assert len(reply.text) == 12
    assert reply.finish_reason == "length"


def test_search_finds_what_the_small_pair_prefers() -> None:
    texts = ["good cards and good money. good good good. ", "bad cards and bad money. bad bad bad. "] * 4
    large = NGramModel(5, "char").fit(texts)
    tuned, untuned = NGramModel(4, "char").fit(texts[::2] * 3 + texts[1:2]), NGramModel(4, "char").fit(texts)
    request = Request.of("and ", temperature=1.0, max_tokens=24, seed=0)
    ratio = LogRatio(tuned, untuned)
    good, bad = ratio.score(request, ["good money.", "bad money."])
    assert good > 0 > bad
    expected = tuned.log_prob("and good")[4:8].sum() - untuned.log_prob("and good")[4:8].sum()
    assert ratio.score(request, ["good"])[0] == pytest.approx(expected, abs=0.1)
    made = {}
    for name, size in (("plain", (1, 1)), ("search", (2, 4))):
        for kind in (ChunkSearch, BlackBoxSearch):
            search = kind(large, tuned, untuned, n_beams=size[0], n_draws=size[1], chunk=6)
            replies = [search.generate([request.replace(seed=seed)])[0].text for seed in range(6)]
            made[name, kind] = np.mean(ratio.score(request, replies))
    assert made["search", ChunkSearch] > made["plain", ChunkSearch] + 1
    assert made["search", BlackBoxSearch] > made["plain", BlackBoxSearch]
    with pytest.raises(InputError, match="at least 1"):
        ChunkSearch(large, tuned, untuned, chunk=0).generate([request])


def test_a_search_ends_at_a_stop_string_and_refuses_what_it_cannot_keep() -> None:
    pytest.importorskip("llguidance")
    search = ChunkSearch(saying([1, 2, 3, 4, 5, 0, 8], 9), random_model(1), random_model(2), chunk=3)
    (reply,) = search.generate([Request.of("a", max_tokens=6)])
    assert (reply.text, reply.finish_reason) == ("bcdefa", "length")
    (reply,) = search.generate([Request.of("a", stop=("de",))])
    assert (reply.text, reply.finish_reason) == ("bc", "stop")
    search.model.window = 4
    for request, error, told in (
        (Request.of("a", temperature=0), InputError, "'temperature' is 0"),
        (Request.of("", max_tokens=3), InputError, "prompt is empty"),
        (Request.of("abcd", max_tokens=3), ContextLengthError, "4 tokens, but the window has 4"),
        (Request.of("a", extra={"response_format": {"type": "json_object"}}), InputError, "keeps to no form"),
    ):
        with pytest.raises(error, match=told):
            search.generate([request])
    with pytest.raises(InputError, match="'temperature' is 0"):
        BlackBoxSearch(random_model(0), random_model(1), random_model(2)).generate([Request.of("a", temperature=0)])


def test_the_large_model_is_never_shown_the_private_message() -> None:
    class Whole(Letters):
        def encode_request(self, request: Request) -> list[int]:
            return self.encode("".join(message.text for message in request.messages))

    seen: dict[str, set[int]] = {"local": set(), "large": set()}

    def reading(name: str) -> Scripted:
        def after(tokens: Sequence[int]) -> LogProbs:
            seen[name].update(tokens)
            return np.log(np.array([0.3, 0.5, 0.2, *[1e-9] * 6], dtype=np.float32))

        return Scripted(after, Whole())

    made = private_contrast(reading("local"), reading("large"))
    made.generate([Request.of("abc", system="hhh", temperature=0, max_tokens=4)])
    assert seen == {"local": {7, 0, 1, 2}, "large": {0, 1, 2}}


@pytest.mark.parametrize("fused", [False, True])
def test_a_search_reads_its_prompt_once(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    n_read: list[int] = []
    whole = FunctionSession.extend

    def counted(self: FunctionSession, tokens: Sequence[int], n_last: int | None = None) -> ArrayLogits:
        n_read.append(len(tokens))
        return whole(self, tokens, n_last)

    large: Any = random_model(0)
    if fused:
        views = {"without_context": without_context}
        models = {"with_context": large, "without_context": large}
        large = Fused(ContextAware(1.0), models, views=views)
    request = Request.of("abc" * 20, "h", max_tokens=4, seed=0)
    monkeypatch.setattr(FunctionSession, "extend", counted)
    (reply,) = ChunkSearch(large, random_model(1), random_model(2), chunk=4).generate([request])
    assert len(reply.text) == 4
    # Once by the large model or by both its roles, and once by each of the small pair.
    assert sum(n > 30 for n in n_read) == 3 + fused


def test_the_learned_combination_beats_both_models_and_one_weight() -> None:
    rng = np.random.default_rng(1)
    n, v = 600, 8
    sure = rng.random(n) < 0.5
    tokens = rng.integers(0, v, n)

    def logs(peak: np.ndarray) -> np.ndarray:
        rows = np.full((n, v), 0.0)
        rows[np.arange(n), tokens] = peak
        rows += rng.normal(size=(n, v)) * 0.1
        return (rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))).astype(np.float32)

    base, other = logs(np.where(sure, 4.0, 0.0)), logs(np.where(sure, 0.0, 4.0))
    at = (np.arange(n), tokens)
    features = combination_features(base, other)
    half = slice(0, 300), slice(300, None)
    scores = {}
    for n_hidden in (0, 16):
        fit = LearnedCombination(n_hidden).fit(features[half[0]], base[at][half[0]], other[at][half[0]])
        fused = fit.fuse({"base": base[half[1]], "other": other[half[1]]})
        assert np.exp(fused).sum(axis=1) == pytest.approx(1, abs=1e-4)
        scores[n_hidden] = fused[np.arange(300), tokens[half[1]]].mean()
    assert scores[16] > scores[0] + 0.3
    assert scores[0] > max(base[at][half[1]].mean(), other[at][half[1]].mean())


def test_the_combinations_gradient_and_saving(tmp_path) -> None:  # type: ignore[no-untyped-def]
    fitted = _combination()
    features = np.random.default_rng(2).normal(size=(5, 4))
    fitted.save(tmp_path / "c.npz")
    assert LearnedCombination.load(tmp_path / "c.npz").weights(features) == pytest.approx(fitted.weights(features))
    (tmp_path / "d.npz").write_bytes(b"no")
    with pytest.raises(InputError, match="no saved combination"):
        LearnedCombination.load(tmp_path / "d.npz")
