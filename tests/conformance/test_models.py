"""What every model and every embedder must do. A new back end is one more fixture value here."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, NoReturn

import numpy as np
import pytest

from pilotfish.decoding.copying import Lookup
from pilotfish.decoding.decoder import speculate
from pilotfish.errors import PilotfishError
from pilotfish.models.embedder import OnnxEmbedder, StaticEmbedder
from pilotfish.models.fake import FakeModel
from pilotfish.models.gguf import GGUFModel
from pilotfish.models.ngram import NGramModel
from pilotfish.models.openai import OpenAIModel
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import Embedder, Model
from pilotfish.types import Request
from tests.models.fixtures import pulled
from tests.models.servers import serving


def _fake(_: ExitStack) -> Model:
    return FakeModel(lambda request: f"You said: {request.prompt} and then some more words")


def _openai(stack: ExitStack) -> Model:
    behind = _fake(stack)

    def answer(http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        (reply,) = behind.generate([Request.from_json(body)])
        choice: dict[str, Any] = {"message": {"content": reply.text}, "finish_reason": reply.finish_reason}
        choice["logprobs"] = {"content": [{"token": t.token, "logprob": t.log_prob} for t in reply.log_probs]}
        usage = {"prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens}
        raw = json.dumps({"choices": [choice], "usage": usage}).encode()
        http.send_response(200)
        http.send_header("Content-Length", str(len(raw)))
        http.end_headers()
        http.wfile.write(raw)

    return stack.enter_context(OpenAIModel("served", stack.enter_context(serving(answer)) + "/v1", "key"))


TEXTS_OF_CARDS = ["Say where the card is, and then where the money is. ", "a b c d e f"]


def _ngram(_: ExitStack) -> Model:
    return NGramModel(4, "char").fit(TEXTS_OF_CARDS)


def _decoder(stack: ExitStack) -> Model:
    target = _ngram(stack)
    assert isinstance(target, NGramModel)
    return speculate(target, [Lookup(), NGramModel(2, "char").fit(TEXTS_OF_CARDS)])


def _gguf(stack: ExitStack) -> Model:
    pytest.importorskip("xllamacpp")
    return stack.enter_context(GGUFModel(pulled("smollm2-135m-instruct"), n_ctx=512, n_parallel=2, n_threads=1))


def _transformers(_: ExitStack) -> Model:
    pytest.importorskip("torch").set_num_threads(1)
    pytest.importorskip("transformers")
    return TransformersModel(pulled("smollm2-135m-instruct"))


MODELS: dict[str, Callable[[ExitStack], Model]] = {
    "fake": _fake,
    "openai": _openai,
    "ngram": _ngram,
    "decoder": _decoder,
    "gguf": _gguf,
    "transformers": _transformers,
}
EMBEDDERS: dict[str, Callable[[], Embedder]] = {
    "minilm fp32": lambda: OnnxEmbedder(pulled("all-minilm-l6-v2"), max_length=64),
    "minilm int8": lambda: OnnxEmbedder(pulled("all-minilm-l6-v2"), precision="int8", max_length=64),
    "static": lambda: StaticEmbedder(pulled("wordllama")),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with ExitStack() as stack:
        yield MODELS[request.param](stack)


@pytest.fixture(scope="module", params=EMBEDDERS)
def embedder(request: pytest.FixtureRequest) -> Embedder:
    return EMBEDDERS[request.param]()


def ask(prompt: str, **fields: Any) -> Request:
    return Request.of(prompt, **{"temperature": 0.0, "max_tokens": 8, "seed": 1, **fields})


def test_it_is_a_model(model: Model) -> None:
    assert isinstance(model, Model)
    assert model.generate([]) == []


def test_one_reply_a_request_in_order(model: Model) -> None:
    prompts = ["Name a colour.", "What is two plus two?", "Where is Paris?", "Say yes."]
    together = [reply.text for reply in model.generate([ask(prompt) for prompt in prompts])]
    alone = [model.generate([ask(prompt)])[0].text for prompt in prompts]
    assert len(together) == 4
    assert together == alone
    assert together[::-1] == [reply.text for reply in model.generate([ask(prompt) for prompt in prompts[::-1]])]


def test_the_same_at_temperature_zero(model: Model) -> None:
    assert len({model.generate([ask("Where is my card?")])[0].text for _ in range(3)}) == 1


def test_what_a_reply_states(model: Model) -> None:
    (reply,) = model.generate([ask("Where is my card?", log_probs=0)])
    assert reply.text
    assert reply.model
    assert reply.finish_reason in ("stop", "length")
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.completion_tokens > 0
    assert reply.usage.cost >= 0
    assert reply.usage.latency >= 0
    assert reply.log_probs
    assert all(token.log_prob <= 0 and token.top == () for token in reply.log_probs)
    assert reply.confidence is None or 0 <= reply.confidence <= 1
    assert model.generate([ask("Where is my card?")])[0].log_probs == ()


def test_max_tokens_ends_a_reply(model: Model) -> None:
    (long,) = model.generate([ask("Tell me where the card", max_tokens=12)])
    (short,) = model.generate([ask("Tell me where the card", max_tokens=2)])
    assert short.usage.completion_tokens <= 2 < long.usage.completion_tokens
    assert short.finish_reason == "length"
    assert long.text.startswith(short.text.rstrip())


def test_a_stop_string_ends_a_reply(model: Model) -> None:
    (whole,) = model.generate([ask("Tell me where the card", max_tokens=12)])
    stop = whole.text[len(whole.text) // 2 :][:3]
    (cut,) = model.generate([ask("Tell me where the card", max_tokens=12, stop=(stop,))])
    assert stop not in cut.text
    assert whole.text.startswith(cut.text.rstrip())
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize(
    "text", ["¿Dónde está? 🙂 日本語 \u200d", "\t\n", "\x00\x07", "x" * 300, "<|im_end|> {{ }} \\"]
)
def test_any_text_is_answered(model: Model, text: str) -> None:
    (reply,) = model.generate([ask(text)])
    assert isinstance(reply.text, str)
    reply.text.encode("utf-8")


def test_a_system_message_and_turns(model: Model) -> None:
    request = Request.from_json(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": [{"type": "text", "text": "Where is my card?"}]},
            ],
            "temperature": 0,
            "max_tokens": 8,
        }
    )
    assert model.generate([request])[0].text


def test_a_wrong_text_is_our_error_or_answered(model: Model) -> None:
    with suppress(PilotfishError):
        assert len(model.generate([ask("half a pair \ud800")])) == 1


def test_streams_join_to_the_reply(model: Model) -> None:
    if not hasattr(model, "stream") or isinstance(model, OpenAIModel):
        pytest.skip("this model does not stream, or its stream is tested with its own server")
    assert "".join(model.stream(ask("Where is my card?"))) == model.generate([ask("Where is my card?")])[0].text


def test_nothing_is_unpickled(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert model.generate([ask("Where is my card?")])


TEXTS = ["Where is my card?", "", "hi", "¿Dónde está? 🙂 日本語", "word " * 5000, "x" * 20_000, "\x00", "half \ud800"]


def test_it_is_an_embedder(embedder: Embedder) -> None:
    assert isinstance(embedder, Embedder)
    assert embedder.embed([]).shape == (0, embedder.n_dimensions)


def test_unit_vectors_for_any_text(embedder: Embedder) -> None:
    vectors = embedder.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), embedder.n_dimensions)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_a_batch_equals_its_texts_alone(embedder: Embedder) -> None:
    together = embedder.embed(TEXTS * 3)
    for text, vector in zip(TEXTS, together, strict=False):
        assert np.abs(embedder.embed([text])[0] - vector).max() < 2e-6


def test_the_same_each_time_and_different_for_different_texts(embedder: Embedder) -> None:
    first, again = embedder.embed(TEXTS), embedder.embed(TEXTS)
    assert np.array_equal(first, again)
    assert first[0] @ first[2] < 0.9


def test_near_texts_are_nearer(embedder: Embedder) -> None:
    a, b, c = embedder.embed(["My bank card has not arrived.", "Where is my new card?", "The weather is cold in May."])
    assert a @ b > a @ c + 0.1
