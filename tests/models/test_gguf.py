from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotfish.errors import ContextLengthError, InputError, MissingExtraError, ModelError
from pilotfish.models.gguf import GGUFModel
from pilotfish.types import Request
from tests.models.fixtures import pulled


@pytest.fixture(scope="module")
def model() -> Iterator[GGUFModel]:
    pytest.importorskip("xllamacpp")
    pulled("smollm2-135m-instruct")
    with GGUFModel("smollm2-135m-instruct", n_ctx=256, n_threads=1) as made:
        yield made


def test_choices_and_schemas_bind_the_reply(model: GGUFModel) -> None:
    schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    replies = model.generate(
        [
            Request.of("Is water wet?", temperature=0, extra={"choices": ['ja "so"', "nein"]}),
            Request.of("Is water wet?", temperature=0, max_tokens=40, extra={"response_format": form}),
            Request.of("Is water wet?", temperature=0, extra={"grammar": 'root ::= "42"'}),
        ]
    )
    assert replies[0].text in ('ja "so"', "nein")
    assert "".join(replies[1].text.split()) in ('{"wet":true}', '{"wet":false}')
    assert replies[2].text == "42"


def test_alternatives_are_sorted_and_seeds_repeat(model: GGUFModel) -> None:
    request = Request.of("Name a colour.", temperature=0, max_tokens=4, log_probs=3)
    (reply,) = model.generate([request])
    assert all(len(token.top) == 3 and token.top[0][1] >= token.top[1][1] for token in reply.log_probs)
    hot = request.replace(temperature=1.5, max_tokens=10, log_probs=None)
    texts = [model.generate([hot.replace(seed=seed)])[0].text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_what_llama_refuses_is_our_error(model: GGUFModel) -> None:
    with pytest.raises(ContextLengthError, match="n_ctx"):
        model.generate([Request.of("word " * 400)])
    with pytest.raises(ContextLengthError):
        list(model.stream(Request.of("word " * 400)))
    for extra in ({"grammar": "bad ::"}, {"choices": []}, {"choices": "yes"}, {"temperature": "hot"}):
        with pytest.raises(InputError):
            model.generate([Request.of("hi", extra=extra)])
    with pytest.raises(InputError, match="image"):
        model.generate(
            [
                Request.from_json(
                    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}
                )
            ]
        )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"temperature": -1.0}, "temperature is -1"), ({"top_p": 0.0}, "top_p is 0"), ({"top_p": 2.0}, "2")],
)
def test_what_llama_would_take_for_something_else_is_refused(
    model: GGUFModel, wrong: dict[str, float], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        model.generate([Request.of("hi", max_tokens=1, **wrong)])
    with pytest.raises(InputError, match=told):
        next(model.stream(Request.of("hi", max_tokens=1, **wrong)))


def test_an_empty_stop_ends_nothing(model: GGUFModel) -> None:
    one, other = (Request.of("Name a colour.", temperature=0, max_tokens=4, stop=stop) for stop in ((), ("",)))
    replies = model.generate([one, other])
    assert replies[0].text == replies[1].text != ""


@pytest.mark.parametrize("wanted", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_tool_that_must_be_called_and_is_not_is_told_of(model: GGUFModel, wanted: object) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    asked = Request.of("hi", temperature=0, max_tokens=4, extra={"tools": [tool], "tool_choice": wanted})
    with pytest.raises(ModelError, match="called no tool"):
        model.generate([asked])


def test_a_reply_stops_at_the_window(model: GGUFModel) -> None:
    request = Request.of("word " * 200, temperature=0, extra={"grammar": 'root ::= "1" root'})
    (reply,) = model.generate([request])
    assert reply.finish_reason == "length"
    assert reply.usage.completion_tokens > 5
    assert reply.usage.prompt_tokens + reply.usage.completion_tokens <= 257


def test_leaving_a_stream_stops_the_model(model: GGUFModel) -> None:
    chunks = model.stream(Request.of("Count.", extra={"grammar": 'root ::= "1" root'}))
    next(chunks)
    start = time.perf_counter()
    chunks.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - start < 1


def test_the_local_port_is_shut(model: GGUFModel) -> None:
    model.generate([Request.of("hi", max_tokens=1)])
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(model._server.listening_address + "/v1/models", timeout=5)


def test_it_is_loaded_again_after_close() -> None:
    pytest.importorskip("xllamacpp")
    model = GGUFModel(pulled("smollm2-135m-instruct"), n_ctx=128, n_parallel=1, n_threads=1, chat=False)
    with model:
        (first,) = model.generate([Request.of("The sky is", temperature=0, max_tokens=4, log_probs=0)])
    with model:
        (second,) = model.generate([Request.of("The sky is", temperature=0, max_tokens=4)])
    assert first.text == second.text
    assert len(first.log_probs) == 4
    assert first.usage.prompt_tokens < 8


def test_what_cannot_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "a.gguf").write_bytes(b"not a model")
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + bytes(100))
    for path in (tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path):
        with pytest.raises(ModelError):
            GGUFModel(path).generate([Request.of("hi")])
    with pytest.raises(InputError, match="neither a path"):
        GGUFModel(tmp_path / "c.gguf").generate([Request.of("hi")])
    with pytest.raises(InputError, match="n_ctx 0"):
        GGUFModel(tmp_path, n_ctx=0).generate([Request.of("hi")])
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtraError, match=r"pilotfish\[gguf\]"):
        GGUFModel(tmp_path / "a.gguf").generate([Request.of("hi")])
