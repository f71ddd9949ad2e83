"""The laws on a real model: speculation is the target, fusion of zero weight is the base, a grammar is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pilotfish.decoding.branches import Branches
from pilotfish.decoding.copying import Lookup
from pilotfish.decoding.decoder import Decoder, fuse, speculate
from pilotfish.decoding.drafting import EarlyExit, OtherVocabulary
from pilotfish.decoding.fusion import ContextAware, ProxyTuning
from pilotfish.errors import ContextLengthError, InputError
from pilotfish.methods.build_decoder import make_decoder, without_context
from pilotfish.models.ngram import NGramModel
from pilotfish.models.transformers import TransformersModel
from pilotfish.types import Request
from tests.models.fixtures import pulled

TEXT = "Repeat: the card has arrived, the card has arrived, the card"
ASK = Request.of(TEXT, temperature=0, max_tokens=16)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    pytest.importorskip("torch").set_num_threads(1)
    pytest.importorskip("transformers")
    pulled("smollm2-135m-instruct")
    return TransformersModel("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def alone(model: TransformersModel) -> str:
    return Decoder(model).generate([ASK])[0].text


def test_plain_is_the_models_own_generation(model: TransformersModel, alone: str) -> None:
    assert alone == model.generate([ASK])[0].text


def test_speculation_is_the_target(model: TransformersModel, alone: str) -> None:
    ngram = NGramModel(4, "char").fit([TEXT])
    for decoder in (
        speculate(model, Lookup()),
        Decoder(model, [EarlyExit(4, least=0.0)], k=2),
        Decoder(model, [Lookup(), OtherVocabulary(ngram)], k=3),
        Decoder(model, [Branches([EarlyExit(4, least=0.0), Lookup()])], k=6),
    ):
        reply, stats = decoder.answer(ASK)
        assert reply.text == alone
        assert stats.n_passes <= stats.n_tokens <= 16


def test_a_session_rewinds_and_forks_without_a_trace(model: TransformersModel) -> None:
    tokens = model.tokenizer.encode("The quick brown fox jumps over the lazy dog.")
    whole = model.session().extend(tokens).log_probs()
    session = model.session()
    session.extend(tokens[:4])
    session.extend([5, 6, 7])
    session.rewind(3)
    twin = session.fork()
    twin.extend([9, 9])
    assert session.extend(tokens[4:]).log_probs() == pytest.approx(whole[4:], abs=2e-3)
    twin.rewind(2)
    assert twin.extend(tokens[4:], 1).log_probs() == pytest.approx(whole[-1:], abs=2e-3)
    assert np.exp(whole).sum(axis=1) == pytest.approx(1, abs=1e-4)


def test_zero_weight_fusion_is_the_base(model: TransformersModel, alone: str) -> None:
    view = {"without_context": without_context}
    for fusion in (ContextAware(0.0), ContextAware(0.0, copied=True)):
        fused = fuse(fusion=fusion, views=view, with_context=model, without_context=model)
        assert alone.startswith(fused.generate([ASK.replace(max_tokens=6)])[0].text)
    proxy = fuse(fusion=ProxyTuning(1.0), base=model, expert=model, anti_expert=model)
    assert alone.startswith(proxy.generate([ASK.replace(max_tokens=5)])[0].text)


def test_a_contrast_of_what_can_be_copied_is_speculated_as_it_is(model: TransformersModel) -> None:
    fusion = ContextAware(0.5, adaptive=False, copied=True)
    fused = fuse(fusion=fusion, views={"without_context": without_context}, with_context=model, without_context=model)
    asked = Request.of("What is the capital of France?", "In this story it is Stockholm.", temperature=0, max_tokens=10)
    text = fused.generate([asked])[0].text
    assert "Stockholm" in text
    assert speculate(fused, [EarlyExit(4, least=0.0), Lookup()]).generate([asked])[0].text == text


def test_a_grammar_is_kept_with_and_without_drafts(model: TransformersModel) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    request = Request.of("Anna is 31. JSON:", temperature=0, max_tokens=60, extra={"response_format": form})
    plain, fast = Decoder(model), Decoder(model, [Lookup()], k=4)
    (reply,) = plain.generate([request])
    assert set(json.loads(reply.text)) == {"name", "age"}
    assert reply.finish_reason == "stop"
    assert fast.generate([request])[0].text == reply.text
    for seed in range(2):
        (drawn,) = fast.generate([request.replace(temperature=1.5, seed=seed)])
        assert set(json.loads(drawn.text)) == {"name", "age"}
    choices = Request.of("Is snow white?", temperature=1.0, seed=0, extra={"choices": ["yes, it is", "no"]})
    assert plain.generate([choices])[0].text in ("yes, it is", "no")
    grammar = Request.of("Three digits:", temperature=1.0, seed=0, extra={"grammar": "root ::= [0-9] [0-9] [0-9]"})
    text = plain.generate([grammar])[0].text
    assert text.isdigit()
    assert len(text) == 3
    stated = [{"type": "json_schema", "json_schema": wrong} for wrong in ("x", {"schema": {"type": "nope"}})]
    for extra in (
        {"choices": []},
        {"choices": ["a"], "grammar": "x"},
        {"response_format": {"type": "xml"}},
        {"response_format": stated[0]},
        {"response_format": stated[1]},
    ):
        with pytest.raises(InputError, match=r"Fields? '(choices|response_format)") as told:
            plain.generate([Request.of("x", extra=extra)])
        assert "\n" not in str(told.value)


def test_characters_and_stop_strings_split_across_tokens(model: TransformersModel) -> None:
    pytest.importorskip("llguidance")
    text = "日本語 🙂 é — naïve 👩‍🚀!"
    assert sum("\ufffd" in model.tokenizer.decode([token]) for token in model.tokenizer.encode(text)) > 6
    asked = Request.of("Repeat.", temperature=1.0, seed=0, max_tokens=80, extra={"choices": [text]})
    for decoder in (Decoder(model), Decoder(model, [Lookup()], k=4)):
        pieces = list(decoder.stream(asked))
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
        for stop in ("語 🙂 é", "🙂", "naïve", "!"):
            assert decoder.generate([asked.replace(stop=(stop,))])[0].text == text[: text.index(stop)]


def test_what_does_not_fit_is_told(model: TransformersModel) -> None:
    with pytest.raises(ContextLengthError):
        Decoder(model).generate([Request.of("word " * 9000, max_tokens=1)])
    with pytest.raises(InputError, match="n_layers is 99"):
        model.first_layers(99)


def test_names_become_decoders(model: TransformersModel, tmp_path: Path) -> None:
    made = make_decoder("smollm2-135m-instruct", ["lookup", "exit:3"], fusion={"kind": "context_aware"})
    assert len(made.drafters) == 2
    for wrong in ({"kind": "sum"}, {"kind": "contrastive"}, {"kind": "contrastive", "models": {"judge": "x"}}):
        with pytest.raises(InputError, match=r"fusion|role"):
            make_decoder("smollm2-135m-instruct", fusion=wrong)
    with pytest.raises(InputError, match="has no option 'gamma'"):
        make_decoder("smollm2-135m-instruct", fusion={"kind": "product", "options": {"gamma": 1.0}})
    with pytest.raises(InputError, match="exit:N"):
        make_decoder("smollm2-135m-instruct", ["exit:few"])
