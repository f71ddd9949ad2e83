"""Local models behind the gateway: the same reply as in Python, with the errors of an endpoint."""

from __future__ import annotations

import threading
import time

import pytest

from pilotfish.errors import ContextLengthError, InputError, ModelError
from pilotfish.models.fake import FakeModel
from pilotfish.types import Reply, Request
from tests.gateway.rig import answer, whole


class Endless:
    """Streams without end."""

    def __init__(self):
        self.begun, self.ended = threading.Event(), threading.Event()

    def generate(self, requests):
        return [Reply("never asked") for _ in requests]

    def stream(self, request: Request):
        try:
            while True:
                yield "on "
                self.begun.set()
                time.sleep(0.001)
        finally:
            self.ended.set()


class Small(FakeModel):
    """Streams its reply word by word."""

    def stream(self, request: Request):
        for word in self.generate([request])[0].text.split(" "):
            yield word + " "


def scripted(request: Request) -> str | Reply | Exception:
    errors = {
        "long": ContextLengthError("The prompt has 9 tokens, the window 4: shorten it."),
        "odd": InputError("Field 'grammar' is 3: give text."),
        "broken": ModelError("The model failed."),
        "odder": RuntimeError("a secret of the model's"),
    }
    return errors.get(request.prompt, f"you said {request.prompt}")


@pytest.fixture
def run(start, monkeypatch):
    models = {"small": Small(scripted), "plain": FakeModel("yes")}
    monkeypatch.setattr("pilotfish.gateway.app.make_models", lambda _configs: models)
    return start(models={"small": {"source": "any"}})


def test_the_gateway_and_python_give_the_same_reply(run):
    reply = run.chat("hello", model="small")
    assert reply.status == 200
    assert reply.data["model"] == "small"
    (same,) = Small(scripted).generate([Request.of("hello", model="small")])
    assert reply.data["choices"][0]["message"]["content"] == same.text == "you said hello"
    (call,) = run.calls()
    assert call.answer == "you said hello"


@pytest.mark.parametrize(("model", "text"), [("small", "you said hello "), ("plain", "yes")])
def test_streams_reach_the_openai_client(run, model, text):
    import openai

    with openai.OpenAI(base_url=run.url, api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "hello"}]
        with client.chat.completions.create(model=model, messages=messages, stream=True) as stream:  # type: ignore[call-overload]
            got = [chunk.choices[0].delta.content or "" for chunk in stream]
        names = [model.id for model in client.models.list()]
    assert "".join(got) == text
    assert names[:2] == ["small", "plain"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [("long", 400, "context_length_exceeded"), ("broken", 500, "model_failed"), ("odder", 500, "model_failed")],
)
def test_failures_have_the_shape_of_an_endpoints(run, prompt, status, code, stream, caplog):
    reply = run.chat(prompt, model="small", stream=stream)
    assert reply.status == status
    assert reply.data["error"]["code"] == code
    assert b"secret" not in reply.body
    assert ("secret" in caplog.text) == (prompt == "odder")
    assert run.chat("hello", model="small").status == 200
    assert [call.status for call in run.calls(2)] == [status, 200]


@pytest.mark.parametrize("how", ["the client leaves", "the gateway stops"])
def test_nothing_is_written_for_nobody(start, monkeypatch, how):
    import openai

    model = Endless()
    monkeypatch.setattr("pilotfish.gateway.app.make_models", lambda _configs: {"endless": model})
    run = start(models={"endless": {"source": "any"}}, server={"shutdown_timeout_s": 1})
    with openai.OpenAI(base_url=run.url, api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "hello"}]
        stream = client.chat.completions.create(model="endless", messages=messages, stream=True)  # type: ignore[call-overload]
        assert next(iter(stream)).choices[0].delta.content == ""
        assert model.begun.wait(5)
        if how == "the client leaves":
            stream.close()
        else:
            run.stop()
        assert model.ended.wait(5)


def test_local_models_answer_while_the_endpoint_is_left_alone(start, upstream, monkeypatch):
    monkeypatch.setattr("pilotfish.gateway.app.make_models", lambda _configs: {"plain": FakeModel("yes")})
    upstream.replies(whole(b"{}", 503))
    run = start(models={"plain": {"source": "any"}}, upstream={"breaker_failures": 2})
    assert [run.chat(model="large").status for _ in range(2)] == [503, 503]
    assert run.chat(model="plain").status == 200
    n_before = len(upstream.received)
    assert b"left alone" in run.chat(model="large").body  # a local answer says nothing about the endpoint
    assert len(upstream.received) == n_before


def test_a_wrong_field_is_named(run):
    reply = run.chat("odd", model="small")
    assert reply.status == 400
    assert "grammar" in reply.data["error"]["message"]


def test_other_models_go_to_the_endpoint(run, upstream):
    upstream.replies(whole(answer("from afar")))
    reply = run.chat("hello", model="large")
    assert reply.status == 200
    assert upstream.received[-1].data["model"] == "large"


def test_more_than_one_choice_is_refused(run):
    reply = run.chat("hello", model="plain", n=2)
    assert reply.status == 400
    assert "Field 'n' is 2" in reply.data["error"]["message"]
    assert run.chat("hello", model="plain", n=1).status == 200
