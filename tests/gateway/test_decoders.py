"""Drafts and fusions named in the configuration are served, streaming too, as Python gives them."""

from __future__ import annotations

import pytest

from pilotfish.decoding.acceptance import Typical
from pilotfish.decoding.drafting import TokenIntersection
from pilotfish.errors import ConfigError, InputError
from pilotfish.gateway.config import GatewayConfig
from pilotfish.gateway.local import make_models
from pilotfish.gateway.sources import load_config
from pilotfish.methods.build_decoder import make_decoder, make_search
from pilotfish.types import Request
from tests.decoding.small import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("served") / "tiny"))


FUSION = {"kind": "contrastive", "options": {"alpha": 0.1, "beta": 0.5}}


@pytest.mark.parametrize("fusion", [None, FUSION])
def test_a_drafted_and_fused_model_is_served(start, folder, fusion):
    section = {"source": folder, "draft": ["lookup", "exit:1"]}
    if fusion:
        section["fusion"] = {**fusion, "models": {"amateur": folder}}
    run = start(models={"fast": section})
    asked = {"temperature": 0, "max_tokens": 12}
    reply = run.chat("say a.", model="fast", **asked)
    assert reply.status == 200
    alone = make_decoder(folder, fusion=section.get("fusion"))
    (same,) = alone.generate([Request.of("say a.", **asked)])
    assert reply.data["choices"][0]["message"]["content"] == same.text
    assert reply.data["usage"]["completion_tokens"] == same.usage.completion_tokens
    import openai

    with openai.OpenAI(base_url=run.url, api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "say a."}]
        more = {"stream": True, "stream_options": {"include_usage": True}}
        with client.chat.completions.create(model="fast", messages=messages, **more, **asked) as stream:
            *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == same.text
    assert chunks[-1].choices[0].finish_reason == same.finish_reason == "length"
    assert last.choices == []
    assert last.usage.completion_tokens == same.usage.completion_tokens


def test_sections_that_name_one_model_share_its_weights(folder):
    fused = {"source": folder, "fusion": {**FUSION, "models": {"amateur": folder}}}
    searched = {"source": folder, "search": {"tuned": folder, "untuned": folder}}
    sections = {"a": {"source": folder, "draft": [folder]}, "b": fused, "c": searched}
    sections["d"] = {"source": folder, "draft": ["lookup"], "dtype": "bfloat16"}
    made = make_models(GatewayConfig.model_validate({"models": sections}))
    model = made["a"].target
    assert made["a"].drafters[0].model is model
    assert {*made["b"].target.models.values(), made["c"].model, made["c"].tuned, made["c"].untuned} == {model}
    assert made["d"].target is not model


def test_a_search_is_served(start, folder):
    sizes = {"n_beams": 2, "n_draws": 1, "chunk": 4}
    search = {"tuned": folder, "untuned": folder, **sizes}
    run = start(models={"good": {"source": folder, "search": search}})
    reply = run.chat("say a.", model="good", max_tokens=8, seed=3)
    assert reply.status == 200
    (same,) = make_search(folder, folder, folder, sizes).generate([Request.of("say a.", max_tokens=8, seed=3)])
    assert reply.data["choices"][0]["message"]["content"] == same.text


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_decoded_is_refused(start, folder, stream):
    search = {"source": folder, "search": {"tuned": folder, "untuned": folder}}
    run = start(models={"fast": {"source": folder, "draft": ["lookup"]}, "good": search})
    for model, fields, told in (
        ("fast", {"prompt": "a" * 500}, "The prompt has 500 tokens, but the window has 128"),
        ("good", {"prompt": "a" * 500}, "The prompt has 500 tokens, but the window has 128"),
        ("fast", {"max_tokens": -1}, "'max_tokens' is -1"),
        ("fast", {"choices": "yes"}, "'choices' is 'yes'"),
        ("good", {"temperature": 0}, "'temperature' is 0"),
    ):
        reply = run.chat(model=model, stream=stream, **fields)
        assert reply.status == 400, reply.body
        assert told in reply.data["error"]["message"]
    assert run.chat("a", model="fast", seed=-1, max_tokens=2, stream=stream).status == 200


def test_typical_drafts_and_shared_tokens_are_configured(folder):
    section = {"source": folder, "draft": [f"tokens:{folder}"], "typical": True}
    made = make_models(GatewayConfig.model_validate({"models": {"m": section}}))["m"]
    assert isinstance(made.drafters[0], TokenIntersection)
    assert isinstance(made.typical, Typical)
    (reply,) = made.generate([Request.of("say a.", temperature=1, seed=1, max_tokens=12)])
    assert 0 < reply.usage.completion_tokens <= 12


def test_switches_of_a_fusion_are_configured(folder, tmp_path):
    file = tmp_path / "pilotfish.toml"
    section = f'[models.m]\nsource = "{folder}"\nfusion = {{ kind = "context_aware", options = '
    file.write_text(section + "{ alpha = 1, adaptive = false, copied = true } }")
    fusion = make_models(load_config(file, environ={}))["m"].target.fusion
    assert (fusion.alpha, fusion.adaptive, fusion.copied) == (1.0, False, True)
    file.write_text(section + "{ copied = 1 } }")
    with pytest.raises(InputError, match=r"'copied' of fusion 'context_aware' is 1.0: give true or false"):
        make_models(load_config(file, environ={}))


def test_what_cannot_be_is_told(folder, tmp_path):
    file = tmp_path / "pilotfish.toml"
    file.write_text('[models.m]\nsource = "x"\nbackend = "llama.cpp"\ndraft = ["lookup"]\n')
    with pytest.raises(ConfigError, match=r"shows no token probabilities"):
        load_config(file, environ={})
    file.write_text('[models.m]\nsource = "x"\ndraft = ["lookup"]\nsearch = { tuned = "a", untuned = "b" }\n')
    with pytest.raises(ConfigError, match="without draft and fusion"):
        load_config(file, environ={})
    file.write_text('[models.m]\nsource = "x"\ntypical = true\n')
    with pytest.raises(ConfigError, match="no drafts to accept: add draft"):
        load_config(file, environ={})
    with pytest.raises(ValueError, match="exit:N"):
        make_models(GatewayConfig.model_validate({"models": {"m": {"source": folder, "draft": ["exit:x"]}}}))
