"""Local answers, and that a student's failure never fails a call."""

from __future__ import annotations

import logging
import threading
import time

import orjson
import pytest

from pilotfish.takeover.lessons import is_random
from pilotfish.traffic import Verdict
from pilotfish.types import Reply, Usage
from tests.gateway.rig import CHAT, answer, wait_for, whole


class Fake:
    """An answerer that does what a test says."""

    def __init__(self, verdict: Verdict | None = None) -> None:
        self.verdict = verdict or local("student says")
        self.tasks = 0
        self.asked = []
        self.observed = []
        self.threads = set()
        self.fail = ""
        self.wait: threading.Event | None = None

    def task_of(self, body, headers):
        if self.fail == "task_of":
            raise RuntimeError("task_of")
        assert "authorization" not in headers
        return headers.get("x-pilotfish-task", "intents")

    def active(self, task):
        if self.fail == "active":
            raise RuntimeError("active")
        return task == "intents"

    def answer(self, task, request):
        self.threads.add(threading.current_thread().name)
        self.asked.append((task, request))
        if self.wait is not None:
            self.wait.wait(10)
        if self.fail == "answer":
            raise RuntimeError("answer")
        return self.verdict

    def observe(self, call):
        self.threads.add(threading.current_thread().name)
        self.observed.append(call)
        if self.fail == "observe":
            raise RuntimeError("observe")


def local(text: str, **more) -> Verdict:
    reply = Reply(text, model="student:3", usage=Usage(prompt_tokens=7, completion_tokens=2))
    return Verdict("intents", reply, text, 0.987654, reason="confident", **more)


def shadow(text: str) -> Verdict:
    return Verdict("intents", None, text, 0.5, reason="in shadow")


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL, logger="pilotfish.gateway")


@pytest.mark.parametrize("durability", ["durable", "fast"])
def test_a_local_answer(start, upstream, durability):
    fake = Fake()
    run = start(fake, log={"durability": durability}, prices={"large": {"input": 1, "output": 1}})
    got = run.chat("Where is my card?")
    assert upstream.received == []
    assert got.data == {
        "id": f"chatcmpl-{got.header('x-pilotfish-call')}",
        "object": "chat.completion",
        "created": got.data["created"],
        "model": "student:3",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "student says", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
    ours = {name: value for name, value in got.headers if name.startswith("x-pilotfish-")}
    assert ours.pop("x-pilotfish-call")
    assert ours == {
        "x-pilotfish-answered-by": "student:3",
        "x-pilotfish-task": "intents",
        "x-pilotfish-confidence": "0.9877",
        "x-pilotfish-reason": "confident",
    }
    assert fake.asked[0][1].prompt == "Where is my card?"
    call = run.calls()[0]
    assert (call.task, call.answered_by, call.prediction, call.answer) == (
        "intents",
        "student:3",
        "student says",
        "student says",
    )
    assert (call.confidence, call.reason, call.cost, call.complete) == (0.987654, "confident", 0.0, True)
    assert (call.prompt_tokens, call.completion_tokens) == (7, 2)
    wait_for(lambda: fake.observed)
    assert fake.observed == [call]
    assert "MainThread" not in fake.threads
    assert run.call("POST", "/v1/feedback", orjson.dumps({"id": got.data["id"], "label": "x"})).status == 200


def test_a_local_stream(start, upstream):
    run = start(Fake())
    plain = run.chat(stream=True)
    assert plain.header("content-type").startswith("text/event-stream")
    datas = [line[6:] for line in plain.body.decode().split("\n\n") if line]
    assert datas[-1] == "[DONE]"
    chunks = [orjson.loads(data) for data in datas[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "student says"
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, "stop"]
    assert all("usage" not in c for c in chunks)
    counted = run.chat(stream=True, stream_options={"include_usage": True})
    last = orjson.loads(counted.body.decode().split("\n\n")[-3][6:])
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 9)
    first, second = run.calls(2)
    assert first.answer == second.answer == "student says"
    assert first.stream
    assert first.complete
    assert (second.prompt_tokens, second.completion_tokens) == (7, 2)
    assert upstream.received == []


def test_in_shadow_the_large_model_answers(start, upstream):
    fake = Fake(shadow("guess"))
    run = start(fake)
    got = run.chat()
    assert got.body == answer()
    assert got.header("x-pilotfish-answered-by") == "upstream"
    assert got.header("x-pilotfish-reason") == "in shadow"
    call = run.calls()[0]
    assert (call.answered_by, call.prediction, call.confidence, call.answer) == (
        "upstream",
        "guess",
        0.5,
        "card_arrival",
    )
    wait_for(lambda: fake.observed == [call])


def test_tasks_without_a_student_are_recorded_only(start, upstream):
    fake = Fake()
    run = start(fake)
    assert run.chat(headers=[("X-Pilotfish-Task", "other")]).body == answer()
    assert fake.asked == []
    call = run.calls()[0]
    assert call.task == "other"
    assert is_random(call)


@pytest.mark.parametrize("fail", ["task_of", "active", "answer", "observe"])
def test_a_failing_student_escalates(start, upstream, fail):
    fake = Fake(shadow("x"))
    fake.fail = fail
    run = start(fake)
    for _ in range(2):
        got = run.chat()
        assert (got.status, got.body) == (200, answer())
    if fail == "answer":
        assert got.header("x-pilotfish-reason") == "student failed: RuntimeError"
    run.calls(2)
    wait_for(lambda: run.metric("pilotfish_student_failures_total") == 2)


def test_a_slow_student_escalates_and_a_stuck_one_is_left_alone(start, upstream, monkeypatch):
    monkeypatch.setattr("pilotfish.gateway.students.MAX_WAITING", 2)
    fake = Fake()
    fake.wait = threading.Event()
    run = start(fake, student={"timeout_s": 0.1})
    begin = time.monotonic()
    reasons = [run.chat().header("x-pilotfish-reason") for _ in range(4)]
    assert time.monotonic() - begin < 3
    assert reasons[0] == "student took over 0.1 s"
    assert reasons[-1] in ("student is busy", "student took over 0.1 s")
    fake.wait.set()
    wait_for(lambda: run.chat().header("x-pilotfish-answered-by") == "student:3")
    calls = run.calls(5)
    assert all(call.status == 200 for call in calls)
    assert not any(is_random(call) for call in calls if call.prediction is None)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"n": 2},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"stop": ["\n"]},
        {"logit_bias": {"1": 2}},
        {"modalities": ["text", "audio"]},
        {"store": True},
        {"a_field_of_tomorrow": None},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y", "tool_call_id": "1"}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": "x"}]},
        {"messages": [{"role": ["user"], "content": "x"}]},
    ],
)
def test_only_plain_text_is_answered_locally(start, upstream, fields):
    fake = Fake()
    run = start(fake)
    got = run.chat(**fields)
    assert got.body == answer()
    assert got.header("x-pilotfish-answered-by") == "upstream"
    assert got.header("x-pilotfish-reason")
    assert fake.asked == []
    assert not is_random(run.calls()[0])


def test_what_changes_nothing_is_answered_locally(start, upstream):
    run = start(Fake())
    got = run.chat(
        n=1,
        tools=[],
        logprobs=False,
        response_format={"type": "text"},
        temperature=0.0,
        max_tokens=20,
        user="u",
        messages=[{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "x"}]}],
    )
    assert got.header("x-pilotfish-answered-by") == "student:3"


def test_other_endpoints_are_not_answered_locally(start, upstream):
    fake = Fake()
    run = start(fake)
    run.call("POST", "/v1/embeddings", b'{"model": "m", "input": "x"}')
    run.call("POST", "/v1/completions", b'{"model": "m", "prompt": "x"}')
    assert fake.asked == []


@pytest.mark.parametrize("stream", [False, True])
def test_an_audit_asks_the_large_model_too(start, upstream, stream):
    fake = Fake(local("student says", audit=True))
    upstream.replies(whole(answer("large says")))
    run = start(fake, prices={"large": {"input": 1.0, "output": 2.0}}, log={"durability": "durable"})
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    got = run.chat("Hi", temperature=0, headers=[("Authorization", "Bearer sk-client")], **more)
    assert got.header("x-pilotfish-answered-by") == "student:3"
    wait_for(lambda: fake.observed)
    (received,) = upstream.received
    assert received.target == CHAT
    assert received.header("authorization") == [b"Bearer sk-client"]
    assert received.data == {"model": "large", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    (observed,) = fake.observed
    assert (observed.audit, observed.answer) == ("large says", "student says")
    assert observed.cost == pytest.approx((12 * 1 + 3 * 2) / 1e6)
    wait_for(lambda: run.calls()[0].audit == "large says")
    assert run.calls()[0] == observed
    assert run.metric("pilotfish_audits_total") == 1


def test_a_failed_audit_is_told_of_too(start, upstream):
    fake = Fake(local("student says", audit=True))
    upstream.replies(whole(b"{}", 500))
    run = start(fake)
    assert run.chat().status == 200
    wait_for(lambda: fake.observed)
    assert fake.observed[0].audit is None
    assert run.calls()[0].audit is None


def test_audits_under_way_are_finished_when_the_gateway_stops(start, upstream):
    import asyncio

    async def script(received, reader, writer):
        await asyncio.sleep(0.6)
        writer.write(whole(answer("late")))

    upstream.script = script
    fake = Fake(local("x", audit=True))
    run = start(fake)
    assert run.chat().status == 200
    run.stop()
    assert run.calls()[0].audit == "late"
    assert [call.audit for call in fake.observed] == ["late"]
