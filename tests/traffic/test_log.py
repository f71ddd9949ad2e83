"""The log keeps what it was given, in order, over processes, and tells a fault from a success."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.errors import InputError, LogError
from pilotfish.traffic import Call, PatternMasker, TrafficLog, new_call_id


@pytest.fixture(params=["durable", "fast"])
def log(request, tmp_path):
    with TrafficLog(tmp_path / "traffic.db", request.param) as log:
        yield log


def test_every_field_comes_back(log):
    call = Call(
        id="call-1",
        created=1_700_000_000.5,
        task="intents",
        endpoint="/v1/chat/completions",
        model="gpt",
        request=b'{"messages": []}',
        reply=b"\x00not json\xff",
        status=418,
        answered_by="student:3",
        prediction="a",
        confidence=0.25,
        reason="sure enough",
        audit="b",
        gold="c",
        latency=0.125,
        prompt_tokens=7,
        completion_tokens=2,
        cost=1e-6,
        key_id="team",
        stream=True,
        complete=False,
        reply_id="chatcmpl-9",
    )
    log.append(call)
    log.flush()
    assert list(log.calls()) == [call.replace(seq=1)]
    assert log.get("call-1") == log.get("chatcmpl-9") == call.replace(seq=1)
    assert log.get("call-2") is None
    assert log.get("") is None


@settings(max_examples=25, deadline=None)
@given(bodies=st.lists(st.tuples(st.binary(max_size=400), st.binary(max_size=400)), max_size=150))
def test_bodies_come_back_byte_for_byte_and_in_order(tmp_path_factory, bodies):
    with TrafficLog(tmp_path_factory.mktemp("log") / "traffic.db", "fast") as log:
        for request, reply in bodies:
            log.append(Call(new_call_id(), time.time(), request=request, reply=reply))
        log.flush()
        assert [(call.request, call.reply) for call in log.calls()] == bodies


def test_accessors_read_the_texts():
    call = Call.of("Hi", "greeting", system="Name the intent.")
    assert (call.prompt, call.system, call.answer) == ("Hi", "Name the intent.", "greeting")
    assert call.to_request().prompt == "Hi"
    parts = b'{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"}]}]}'
    broken = Call("x", 0.0, request=parts, reply=b"<html>")
    assert (broken.prompt, broken.system, broken.answer) == ("a", "", "")
    response = b'{"output":[{"type":"message","content":[{"type":"output_text","text":"ok"}]}]}'
    assert broken.replace(reply=response).answer == "ok"
    for odd in (b"", b"[]", b'{"messages":{}}', b'{"messages":[1,{"role":"user","content":[3]}]}'):
        assert broken.replace(request=odd).prompt == ""
    for odd in (b"", b"7", b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":[{"message":{"content":null}}]}'):
        assert broken.replace(reply=odd).answer == ""


def test_filters(log):
    for i in range(1200):
        answered_by = ("upstream", "student:1", "student:2")[i % 3]
        log.append(Call.of(str(i), "x", task="ab"[i % 2], created=float(i), answered_by=answered_by)) if i < 30 else (
            log.post(Call.of(str(i), "x", task="ab"[i % 2], created=float(i), answered_by=answered_by))
        )
    log.flush()

    def prompts(**filters) -> list[int]:
        return [int(call.prompt) for call in log.calls(**filters)]

    assert prompts() == list(range(1200))
    assert prompts(newest_first=True) == list(range(1199, -1, -1))
    assert prompts(task="b") == list(range(1, 1200, 2))
    assert prompts(since=10, until=20) == list(range(10, 20))
    assert prompts(answered_by="student:2", until=9) == [2, 5, 8]
    assert prompts(answered_by="student", until=9) == [1, 2, 4, 5, 7, 8]
    assert prompts(limit=700) == list(range(700))
    assert prompts(limit=0) == []
    assert prompts(newest_first=True, limit=2) == [1199, 1198]
    assert prompts(after=1197) == [1197, 1198, 1199]
    assert prompts(after=1198, newest_first=True) == [1199, 1198]
    assert log.count() == 1200
    assert log.count(task="a", after=1000) == 100
    totals = {(row.task, row.answered_by): row.n_calls for row in log.totals()}
    assert totals == {(task, name): 200 for task in "ab" for name in ("upstream", "student:1", "student:2")}


def test_submit_resolves_after_the_commit(tmp_path):
    path = tmp_path / "traffic.db"

    async def main() -> None:
        with TrafficLog(path) as log:
            futures = [log.submit(lambda i=i: Call.of(str(i), "x")) for i in range(50)]
            await asyncio.gather(*futures)
            with sqlite3.connect(path) as other:
                assert other.execute("SELECT COUNT(*) FROM calls").fetchone() == (50,)
            other.close()

    asyncio.run(main())


def test_many_appends_share_few_commits(tmp_path):
    batches: list[int] = []
    with TrafficLog(tmp_path / "traffic.db", on_written=lambda calls: batches.append(len(calls))) as log:
        threads = [
            threading.Thread(target=lambda: [log.append(Call.of("a", "b")) for _ in range(10)]) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(batches) == 160
    assert len(batches) < 120


def test_on_written_sees_calls_with_their_positions(tmp_path):
    seen: list[Call] = []

    def observe(calls: Sequence[Call]) -> None:
        seen.extend(calls)
        raise RuntimeError("an observer's fault is its own")

    with TrafficLog(tmp_path / "traffic.db", "fast", on_written=observe) as log:
        for i in range(5):
            log.append(Call.of(str(i), "x"))
    assert [(call.seq, call.prompt) for call in seen] == [(i + 1, str(i)) for i in range(5)]


def test_a_call_that_cannot_be_made_does_not_hold_up_others(tmp_path):
    async def main() -> None:
        with TrafficLog(tmp_path / "traffic.db") as log:
            bad, good = log.submit(lambda: Call.of(None, "x")), log.submit(Call.of("a", "x"))  # type: ignore[arg-type]
            with pytest.raises(LogError, match="could not be recorded"):
                await bad
            await good
            assert log.count() == 1
            assert log.n_dropped == 1
            log._writer.n_dropped = 0

    asyncio.run(main())


def test_the_same_id_twice_is_refused_and_costs_no_other(tmp_path):
    async def main() -> None:
        with TrafficLog(tmp_path / "traffic.db") as log:
            calls = [Call.of(str(i), "x", id=f"call-{i % 3}") for i in range(4)]
            results = await asyncio.gather(*map(log.submit, calls), return_exceptions=True)
            assert [isinstance(result, LogError) for result in results] == [False, False, False, True]
            assert [call.prompt for call in log.calls()] == ["0", "1", "2"]
            log._writer.n_dropped = 0

    asyncio.run(main())


def test_amend_and_feedback(log):
    log.post(Call.of("a", "x", id="call-1", reply_id="chatcmpl-1"))
    log.amend("call-1", audit="y", cost=0.5)
    assert log.feedback("chatcmpl-1", "z")
    assert not log.feedback("call-7", "z")
    assert not log.feedback("", "z")
    log.flush()
    call = log.get("call-1")
    assert (call.audit, call.cost, call.gold) == ("y", 0.5, "z")
    with pytest.raises(InputError, match="'request'"):
        log.amend("call-1", request=b"")


def test_what_an_audit_costs_is_spent_with_the_call_s_key(log):
    log.post(Call.of("a", "x", id="call-1", created=86400.0, key_id="team", cost=0.0))
    log.post(Call.of("b", "x", id="call-2", created=86400.0, cost=1.0))
    log.amend("call-1", audit="x", cost=0.5)
    log.amend("call-2", audit="x", cost=1.5)
    log.flush()
    assert log.spent("team", 86400.0) == 0.5


def test_spend_is_summed_by_key_and_day(log):
    for created, key, cost in [(0.0, "a", 1.0), (86399.0, "a", 2.0), (86400.0, "a", 4.0), (0.0, "b", 8.0)]:
        log.post(Call.of("x", "y", created=created, key_id=key, cost=cost))
        log.flush()
    assert log.spent("a", 100.0) == 3.0
    assert log.spent("a", 86401.0) == 4.0
    assert log.spent("b", 0.0) == 8.0
    assert log.spent("c") == 0.0


def test_ids_rise_though_the_clock_goes_back(log, monkeypatch):
    clock = iter([2_000_000_000_000_000_000, 1_000_000_000_000_000_000, 1_500_000_000_000_000_000])
    monkeypatch.setattr("pilotfish.traffic.calls.time.time_ns", lambda: next(clock))
    ids = [new_call_id() for _ in range(3)]
    assert ids == sorted(set(ids))
    monkeypatch.undo()
    for name, created in zip(ids, (2e9, 1e9, 1.5e9), strict=True):
        log.post(Call.of("a", "b", id=name, created=created))
    log.flush()
    assert [call.id for call in log.calls()] == ids


def test_states_change_as_one_step(log):
    assert log.state("t") == {}
    assert log.states() == {}
    log.update_state("t", lambda state: {**state, "n": 1})
    assert log.update_state("t", lambda state: {**state, "n": state["n"] + 1}) == {"n": 2}
    with pytest.raises(ZeroDivisionError):
        log.update_state("t", lambda state: {"n": 1 // 0})
    assert log.states() == {"t": {"n": 2}}
    assert log.states()["t"] is log.states()["t"]
    log.update_state("t", lambda state: {**state, "n": 3})
    assert log.states() == {"t": {"n": 3}}


def test_changed_sees_states_of_others_and_no_calls(tmp_path):
    path = tmp_path / "traffic.db"
    with TrafficLog(path) as log, TrafficLog(path) as other:
        assert not log.changed()
        other.append(Call.of("a", "b"))
        assert not log.changed()
        other.update_state("t", lambda _: {"live": True})
        assert log.changed()
        assert not log.changed()


def test_events(log):
    log.event("t", "promoted", {"threshold": 0.9})
    log.event("u", "learned")
    log.event("t", "rolled back")
    assert [(event.task, event.kind, event.detail) for event in log.events()] == [
        ("t", "promoted", {"threshold": 0.9}),
        ("u", "learned", {}),
        ("t", "rolled back", {}),
    ]
    first, last = log.events("t")
    assert (first.kind, last.kind) == ("promoted", "rolled back")
    assert log.events("t", after=first.seq) == [last]


def test_prune(log):
    for i in range(5000):
        log.post(Call.of(str(i), "x", created=float(i)))
    log.flush()
    assert log.prune(max_rows=4500) == 500
    assert log.prune(before=1000.0) == 500
    assert log.count() == 4000
    assert next(log.calls()).prompt == "1000"
    assert log.prune(max_rows=0) == 4000
    log.post(Call.of("new", "x"))
    log.flush()
    assert next(log.calls()).seq == 5001


def test_personal_data_is_masked_before_it_is_written(tmp_path):
    path = tmp_path / "traffic.db"
    with TrafficLog(path, mask=PatternMasker()) as log:
        log.append(Call.of("I am jo@example.org", "Hello jo@example.org", id="call-1", prediction="jo@example.org"))
        log.amend("call-1", audit="jo@example.org")
        assert log.feedback("call-1", "jo@example.org")
        log.flush()
        call = log.get("call-1")
        assert (call.prompt, call.answer, call.prediction) == ("I am [EMAIL]", "Hello [EMAIL]", "[EMAIL]")
        assert (call.audit, call.gold) == ("[EMAIL]", "[EMAIL]")
    assert b"example.org" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_only_the_owner_may_read_the_file(tmp_path):
    with TrafficLog(tmp_path / "new" / "traffic.db") as log:
        log.append(Call.of("a", "b"))
        for file in (tmp_path / "new").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


def _write(path: Path, process: int) -> None:
    with TrafficLog(path) as log:
        for i in range(40):
            log.append(Call.of(f"{process}-{i}", "x"))
            log.update_state("t", lambda state: {"n": state.get("n", 0) + 1})


def test_several_processes_write_one_log(tmp_path):
    path = tmp_path / "traffic.db"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(path, i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with TrafficLog(path, read_only=True) as log:
        prompts = [call.prompt for call in log.calls()]
        assert sorted(prompts) == sorted(f"{p}-{i}" for p in range(3) for i in range(40))
        for p in range(3):
            assert [x for x in prompts if x.startswith(f"{p}-")] == [f"{p}-{i}" for i in range(40)]
        assert log.state("t") == {"n": 120}


def test_wrong_durability_and_use_after_close(tmp_path):
    with pytest.raises(InputError, match="'slow'"):
        TrafficLog(tmp_path / "traffic.db", "slow")  # type: ignore[arg-type]
    log = TrafficLog(tmp_path / "traffic.db")
    log.close()
    with pytest.raises(LogError, match="closed"):
        log.append(Call.of("a", "b"))


def test_a_call_that_cannot_be_written_is_told_and_holds_up_no_other(tmp_path):
    log = TrafficLog(tmp_path / "traffic.db")
    with pytest.raises(LogError, match="could not be written"):
        log.append(Call("odd", time.time(), confidence={}))  # type: ignore[arg-type]
    log.append(Call("fine", time.time()))
    assert [call.id for call in log.calls()] == ["fine"]
    with pytest.raises(LogError, match="1 calls"):
        log.close()
