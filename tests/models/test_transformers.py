from __future__ import annotations

import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from pilotfish.errors import ContextLengthError, MissingExtraError, ModelError
from pilotfish.models import transformers as ours
from pilotfish.models.transformers import TransformersModel, pretrained
from pilotfish.types import Request
from tests.decoding.small import tiny_model
from tests.models.fixtures import pulled
from tests.models.servers import serving


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    pytest.importorskip("torch").set_num_threads(1)
    pytest.importorskip("transformers")
    pulled("smollm2-135m-instruct")
    return TransformersModel("smollm2-135m-instruct")


def test_log_probs_of_a_reply_are_those_of_its_text(model: TransformersModel) -> None:
    request = Request.of("Name three colours.", temperature=0, max_tokens=10, log_probs=2)
    shorter = Request.of("Hi.", temperature=0, max_tokens=10, log_probs=2)
    (reply, _) = model.generate([request, shorter])
    assert reply.finish_reason == "length"
    assert "".join(token.token for token in reply.log_probs) == reply.text
    tokenizer, _ = model._parts()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name three colours."}], add_generation_prompt=True, tokenize=False
    )
    (whole,) = model.log_probs([prompt + reply.text])
    assert [t.log_prob for t in reply.log_probs] == pytest.approx([t.log_prob for t in whole[-10:]], abs=1e-3)
    assert all(token.top[0] == (token.token, token.log_prob) for token in reply.log_probs)


def test_likelier_text_scores_higher(model: TransformersModel) -> None:
    good, bad, short = model.log_probs(["The cat sat on the mat.", "Mat the on sat cat the.", "a"])
    assert sum(t.log_prob for t in good) > sum(t.log_prob for t in bad)
    assert short == ()


def test_seeds_repeat(model: TransformersModel) -> None:
    request = Request.of("Name a colour.", temperature=1.5, max_tokens=10, top_p=0.9)
    texts = [model.generate([request.replace(seed=seed)])[0].text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_what_does_not_fit_is_told(model: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ContextLengthError):
        model.generate([Request.of("word " * 9000, max_tokens=1)])
    with pytest.raises(ModelError, match="could not load"):
        TransformersModel(tmp_path).generate([Request.of("x")])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pilotfish\[torch\]"):
        TransformersModel(tmp_path).generate([Request.of("x")])


def test_an_encoder_is_no_language_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny_model(tmp_path / "tiny")  # for its tokenizer
    config = transformers.BertConfig(
        vocab_size=29, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"no weights for cls.* language model needs"):
        TransformersModel(folder).generate([Request.of("say a.", temperature=0, max_tokens=2)])


def _unknown(http: BaseHTTPRequestHandler) -> None:
    http.send_response(404)
    http.send_header("X-Error-Code", "RepoNotFound")
    http.send_header("Content-Length", "0")
    http.end_headers()


def test_a_name_the_hub_does_not_know_or_a_hub_that_is_away_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(ours, "_HUB_TIMEOUT", 0.5)

    def said(address: str, name: str) -> str:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        start = time.perf_counter()
        with pytest.raises(ModelError) as caught:
            pretrained("AutoModelForCausalLM", name, "This")
        assert time.perf_counter() - start < 10
        return str(caught.value)

    with serving(_unknown) as hub:
        assert said(hub, "nobody/nothing").startswith("The hub shows no model nobody/nothing: mend the name")
    with serving(lambda http: time.sleep(2)) as slow:
        assert "couldn't connect" in said(slow, "nobody/nothing")
    assert "couldn't connect" in said("http://127.0.0.1:9", "nobody/nothing")
    assert "could not load a/b/c (Repo id must be" in said("http://127.0.0.1:9", "a/b/c")
