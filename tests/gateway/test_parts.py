"""Stream assembly, usage, the breaker, the counts of several workers."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pilotfish.gateway.config import PriceConfig
from pilotfish.gateway.exchange import cost_of
from pilotfish.gateway.metrics import Metrics
from pilotfish.gateway.shapes import assemble, completion_stream, usage_of, why_not_local
from pilotfish.gateway.upstream import Breaker
from pilotfish.types import Reply
from tests.gateway.rig import events


@given(st.lists(st.text(), max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_put_together_says_what_its_parts_said(texts, newline):
    stream = b"".join(events(*({"content": text} for text in texts))).replace(b"\n", newline)
    body, ended = assemble(stream)
    assert ended
    assert body["choices"][0].get("message", {}).get("content", "") == "".join(texts)


@given(st.text())
def test_a_local_stream_says_the_reply(text):
    body, ended = assemble(completion_stream("call-1", 1.0, "m", Reply(text), with_usage=True))
    assert ended
    assert body["choices"][0]["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert body["usage"]["total_tokens"] == 0


@given(st.binary(max_size=300))
def test_no_stream_breaks_the_assembly(noise):
    assemble(noise)
    assemble(b"data: " + noise + b"\n\n")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(["index", "delta", "message", "content", "role", "text", "logprobs", "finish_reason"]),
                x,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@example([{"text": False}, {"text": ""}])
@example([{"message": 1}, {"delta": {"content": ""}}])
def test_no_event_breaks_the_assembly(choices):
    assemble(b"data: " + json.dumps({"choices": choices}).encode() + b"\n\ndata: [DONE]\n\n")


def test_several_choices_and_log_probs():
    def event(index, delta, **more):
        choice = {"index": index, "delta": delta, "finish_reason": None, **more}
        return b"data: " + orjson.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"

    stream = (
        event(1, {"role": "assistant", "content": "b"}, logprobs={"content": [{"token": "b"}], "refusal": None})
        + event(0, {"role": "assistant", "content": "a"}, logprobs=None)
        + event(1, {"content": "B"}, logprobs={"content": [{"token": "B"}], "refusal": None})
    )
    body, ended = assemble(stream)
    assert not ended
    assert [choice["message"]["content"] for choice in body["choices"]] == ["a", "bB"]
    assert [part["token"] for part in body["choices"][1]["logprobs"]["content"]] == ["b", "B"]


def test_usage_and_cost():
    assert usage_of({}) is None
    assert usage_of({"usage": {"prompt_tokens": "many"}}) is None
    assert usage_of({"usage": {"prompt_tokens": 5, "completion_tokens": 2}}) == (5, 0, 2)
    assert usage_of(
        {"usage": {"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}}
    ) == (5, 4, 2)
    prices = {"a": PriceConfig(input=2, output=4), "b": PriceConfig(input=2, output=4, cached_input=1)}
    assert cost_of(prices, ("a",), (10, 5, 3)) == pytest.approx(32e-6)
    assert cost_of(prices, ("none", "b"), (10, 5, 3)) == pytest.approx(27e-6)
    assert cost_of(prices, ("none",), (10, 5, 3)) == 0


def test_true_is_not_one():
    messages = [{"role": "user", "content": "x"}]
    assert why_not_local({"messages": messages, "n": True}) == "asks for n"
    assert why_not_local({"messages": messages, "n": 1}) is None


def test_the_breaker_lets_one_trial_through():
    now = [0.0]
    breaker = Breaker(2, 10.0, lambda: now[0])
    breaker.failed()
    assert breaker.allows()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now[0] = 10.0
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    now[0] = 20.0
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
    assert not breaker.is_open


def test_counts_of_several_workers_are_summed(tmp_path):
    one, two = Metrics(tmp_path, "1"), Metrics(tmp_path, "2")
    for metrics, n_calls in ((one, 2), (two, 3)):
        for _ in range(n_calls):
            metrics.call("/v1/x", 'a"b', 200, 0.003)
        metrics.leave()
    text = one.text()
    assert 'pilotfish_calls_total{endpoint="/v1/x",answered_by="a\\"b",status="200"} 5' in text
    assert 'le="0.0025"} 0' in text
    assert 'le="0.005"} 5' in text
    assert "_count" in text
    assert text == two.text()
