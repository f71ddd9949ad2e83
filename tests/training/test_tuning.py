"""Small training on a tiny real architecture: what is trained changes, what is not stays, and losses fall."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pilotfish.decoding.decoder import Decoder
from pilotfish.decoding.drafting import SmallModel
from pilotfish.errors import InputError
from pilotfish.models.transformers import TransformersModel
from pilotfish.training.tuning import distil_draft, prefer, save_model, train_adapter, tune
from pilotfish.types import Request
from tests.decoding.small import tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    folder = tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    with pytest.raises(InputError, match="exists already"):
        save_model(TransformersModel(folder), folder)
    return TransformersModel(folder)


def loss(model: TransformersModel, text: str) -> float:
    tokens = model.tokenizer.encode(text)
    logs = model.session().extend(tokens).log_probs()
    return -float(logs[np.arange(len(tokens) - 1), tokens[1:]].mean())


@pytest.mark.parametrize("rank", [0, 4])
def test_tuning_learns_and_leaves_the_model(tiny: TransformersModel, rank: int, tmp_path: Path) -> None:
    before = loss(tiny, "the cat sat.")
    tuned = tune(tiny, [("", "the cat sat.")] * 4, n_steps=40, learning_rate=2e-2, rank=rank)
    assert loss(tuned, "the cat sat.") < before - 0.5
    assert loss(tiny, "the cat sat.") == before
    save_model(tuned, tmp_path / "tuned")
    assert loss(TransformersModel(tmp_path / "tuned"), "the cat sat.") == pytest.approx(
        loss(tuned, "the cat sat."), abs=1e-4
    )
    with pytest.raises(InputError, match="no examples"):
        tune(tiny, [("the cat", "")])


def test_what_comes_before_is_not_learned(tiny: TransformersModel) -> None:
    tuned = tune(tiny, [("zzzzzz", "abc")] * 4, n_steps=30, learning_rate=1e-2)
    assert loss(tuned, "zzzzzzz") > loss(tuned, "zzzzzzabc")


def test_a_reply_to_a_request_is_learned_with_its_end(tiny: TransformersModel) -> None:
    asked = Request.of("say b", temperature=0.0, max_tokens=8)
    tuned = tune(tiny, [(asked, "b")] * 4, n_steps=60, learning_rate=1e-2)
    [reply] = tuned.generate([asked])
    assert (reply.text, reply.finish_reason) == ("b", "stop")


def test_a_distilled_draft_is_accepted_more(tiny: TransformersModel) -> None:
    target = tune(tiny, [("", "the cat sat on the mat.")] * 4, n_steps=80, learning_rate=1e-2)
    draft = distil_draft(target, ["the cat sat on the mat."] * 4, n_layers=1, n_steps=80, learning_rate=1e-2)
    request = Request.of("the c", temperature=0, max_tokens=16)
    alone = Decoder(target).generate([request])[0].text
    shares = {}
    for name, model in (("early exit", target.first_layers(1)), ("distilled", draft)):
        reply, stats = Decoder(target, [SmallModel(model, least=0.0)], k=3).answer(request)
        assert reply.text == alone
        shares[name] = stats.n_accepted / stats.n_drafted
    assert shares["distilled"] > max(0.6, shares["early exit"])


def test_preferences_move_the_ratio(tiny: TransformersModel) -> None:
    tuned = prefer(tiny, [("say ", "good.", "bad.")] * 4, n_steps=30, learning_rate=5e-3)
    margin = loss(tuned, "say bad.") - loss(tuned, "say good.")
    assert margin > loss(tiny, "say bad.") - loss(tiny, "say good.") + 0.1


def test_an_adapter_raises_the_reward(tiny: TransformersModel) -> None:
    def reward(texts: list[str]) -> list[float]:
        return [text.count("a") for text in texts]

    adapter = train_adapter(tiny, tiny, ["say "], reward, n_rounds=40, n_samples=16, n_tokens=6, learning_rate=1e-2)
    end = tiny.tokenizer.encode("say ")
    a = tiny.tokenizer.encode("a")[0]
    before, after = (m.session().extend(end, 1).log_probs()[0, a] for m in (tiny, adapter))
    assert after > before + 0.5
