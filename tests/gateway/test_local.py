"""Local models behind the gateway: the same reply as in Python, with the errors of an endpoint."""

from __future__ import annotations

import threading
import time

import pytest

from pilotfish.errors import ContextLengthError, InputError, ModelError
from pilotfish.gateway.keys import new_key
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
        (reply,) = self.generate([request])
        for word in reply.text.split(" "):
            yield word + " "
        return reply


def scripted(request: Request) -> str | Reply | Exception:
    errors = {
        "long": ContextLengthError("The prompt has 9 tokens, the window 4: shorten it."),
        "odd": InputError("Field 'grammar' is 3: give text."),
        "broken": ModelError("The model failed."),
        "odder": RuntimeError("a secret of the model's"),
    }
    return errors.get(request.prompt, f"you said {request.prompt}")


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = Reply("", finish_reason="tool_calls", extra={"tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
]})  # fmt: skip


@pytest.fixture
def run(start, monkeypatch):
    models = {"small": Small(scripted), "plain": FakeModel("yes"), "calling": FakeModel(lambda _: CALL)}
    monkeypatch.setattr("pilotfish.gateway.app.make_models", lambda _configs: models)
    return start(models={"small": {"source": "any"}})


def test_the_gateway_and_python_give_the_same_reply(run):
    reply = run.chat("hello", model="small")
    assert reply.status == 200
    assert reply.header("x-pilotfish-answered-by") == reply.data["model"] == "small"
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
def test_further_choices_log_probs_and_tool_calls_reach_the_openai_client(run, stream):
    import openai

    asked = {"messages": [{"role": "user", "content": "hello"}], "stream": stream}
    with openai.OpenAI(base_url=run.url, api_key="none", max_retries=0) as client:

        def choices(**more):
            got = client.chat.completions.create(**asked, **more)
            return [choice for chunk in got for choice in chunk.choices] if stream else got.choices

        several = choices(model="small", n=2, logprobs=True)
        (called,) = [c for c in choices(model="calling", tools=[TOOL]) if (c.delta if stream else c.message).tool_calls]
        for n in (0, 129, "two", True):
            with pytest.raises(openai.BadRequestError, match="Field 'n' is"):
                choices(model="small", n=n)
    told = [c for c in several if c.logprobs]
    assert [c.index for c in told] == [0, 1]
    assert [[t.token for t in c.logprobs.content] for c in told] == [["you ", "said ", "hello"]] * 2
    (call,) = (called.delta if stream else called.message).tool_calls
    assert (call.function.name, call.function.arguments) == ("look", "{}")


def test_choices_have_seeds_of_their_own_and_are_counted(start, monkeypatch):
    model = FakeModel(lambda request: f"seed {request.seed}")
    monkeypatch.setattr("pilotfish.gateway.app.make_models", lambda _configs: {"small": model})
    run = start(models={"small": {"source": "any"}})
    reply = run.chat("hello", model="small", n=3, seed=7)
    assert [c["message"]["content"] for c in reply.data["choices"]] == ["seed 7", "seed 8", "seed 9"]
    assert reply.data["usage"] == {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7}


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


def test_a_reply_that_is_not_streamed_stops_when_the_client_leaves(start, monkeypatch):
    import openai

    model = Endless()
    monkeypatch.setattr("pilotfish.gateway.app.make_models", lambda _configs: {"endless": model})
    run = start(models={"endless": {"source": "any"}})
    with openai.OpenAI(base_url=run.url, api_key="none", max_retries=0, timeout=0.5) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="endless", messages=[{"role": "user", "content": "hello"}])  # type: ignore[call-overload]
        assert model.begun.is_set()
        assert model.ended.wait(5)


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
    assert reply.header("x-pilotfish-answered-by") == "upstream"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/embeddings"])
def test_what_is_asked_of_a_local_model_never_leaves(run, upstream, path):
    reply = run.call("POST", path, b'{"model": "small", "input": "private", "prompt": "private"}')
    assert reply.status == 400
    assert "send them to /v1/chat/completions" in reply.data["error"]["message"]
    assert upstream.received == []
    form = run.call("POST", "/v1/audio/transcriptions", b"--x\r\n", [("content-type", "multipart/form-data")])
    assert form.status == 200
    assert len(upstream.received) == 1


def test_a_local_model_is_found_by_its_name(run, upstream):
    import openai

    with openai.OpenAI(base_url=run.url, api_key="none", max_retries=0) as client:
        assert client.models.retrieve("small").owned_by == "pilotfish"
        assert upstream.received == []
        client.models.retrieve("large")
    assert upstream.received[0].target == "/v1/models/large"


def test_a_local_model_spends_nothing_of_a_keys_budget(start, monkeypatch):
    key, hashed = new_key()
    monkeypatch.setattr("pilotfish.gateway.app.make_models", lambda _configs: {"small": FakeModel("yes")})
    run = start(
        models={"small": {"source": "any"}},
        keys={"team": {"hash": hashed, "budget_usd_per_day": 1e-9}},
        prices={"large": {"input": 1.0, "output": 1.0}},
    )
    asked = [run.chat("hi", model="small", headers=[("authorization", f"Bearer {key}")]) for _ in range(2)]
    assert [reply.status for reply in asked] == [200, 200]
    assert [call.cost for call in run.calls(2)] == [0.0, 0.0]
