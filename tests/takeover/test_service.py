"""The life of a task: observed, learned, certified, live, audited, handed back, learned anew."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from scipy import stats

from pilotfish.errors import InputError, TaskError, TaskLockedError, UnknownTaskError
from pilotfish.takeover import Target, certify
from pilotfish.takeover.learning import promised
from pilotfish.takeover.replay import replay
from pilotfish.takeover.service import Takeover
from pilotfish.takeover.state import TaskState
from pilotfish.traffic import Call, TrafficLog
from pilotfish.traffic.tasks import Task
from tests.takeover.students import WordStudent

WORDS = {"card": "card arrival", "fee": "wrong charge", "lost": "lost item", "lock": "unlock problem"}
FILLER = ["please", "hello", "my", "the", "today", "again", "help", "why", "now", "still"]
TARGET = Target("system", 0.95)


def stream(n: int, seed: int = 0, truth: dict[str, str] = WORDS, noise: float = 0.01) -> list[Call]:
    rng = random.Random(seed)
    calls = []
    for i in range(n):
        word = rng.choice(list(truth))
        text = " ".join([*rng.sample(FILLER, 3), word])
        answer = truth[word] if rng.random() > noise else rng.choice(list(truth.values()))
        calls.append(Call.of(text, answer, task="desk", cost=0.001, id=f"call-{seed}-{i}"))
    return calls


@pytest.fixture
def log(tmp_path: Path) -> Iterator[TrafficLog]:
    with TrafficLog(tmp_path / "traffic.db", "fast") as opened:
        yield opened


@pytest.fixture
def make(log: TrafficLog, tmp_path: Path) -> Callable[..., Takeover]:
    def made(**fields: object) -> Takeover:
        settings = {"target": TARGET, "seed": 0} | fields
        return Takeover(log, tmp_path / "students", WordStudent, **settings)  # type: ignore[arg-type]

    return made


def feed(takeover: Takeover, calls: list[Call]) -> None:
    for call in calls:
        takeover.task_of(orjson.loads(call.request), {"x-pilotfish-task": "desk"})
        takeover.log.append(call)
    takeover.log.flush()
    for call in takeover.log.calls(task="desk"):
        takeover.observe(call)
    takeover.flush()


def test_a_task_goes_from_observing_to_live(make: Callable[..., Takeover]) -> None:
    takeover = make()
    feed(takeover, stream(600))
    assert takeover.state("desk").phase == "observing"
    assert not takeover.active("desk")
    learned = takeover.learn("desk")
    assert learned.certificate.ok
    assert takeover.state("desk").phase == "shadow"
    request = stream(1)[0].to_request()
    shadow = takeover.answer("desk", request)
    assert shadow.reply is None
    assert shadow.prediction is not None
    takeover.promote("desk")
    live = takeover.answer("desk", request)
    assert live.reply is not None
    assert live.reply.model == "student:v1"
    assert live.reply.confidence == live.confidence


def test_a_student_is_told_what_the_large_model_is_told(make: Callable[..., Takeover]) -> None:
    takeover = make()
    calls = [Call.of(c.prompt, c.answer or "", system="Name the intent.", task="desk") for c in stream(200)]
    feed(takeover, calls)
    student = takeover.learn("desk").student
    assert isinstance(student, WordStudent)
    assert student.told_ == "Name the intent."


def test_two_processes_see_the_same_states(make: Callable[..., Takeover]) -> None:
    one, other = make(), make()
    feed(one, stream(600))
    one.learn("desk")
    one.promote("desk")
    assert other.states()["desk"].phase == "live"
    request = stream(1)[0].to_request()
    assert other.answer("desk", request).reply is not None
    other.roll_back("desk", "by request")
    assert one.states()["desk"].phase == "rolled_back"
    assert one.answer("desk", request).reply is None


def test_two_processes_that_see_one_breach_hand_the_task_back_once(make: Callable[..., Takeover]) -> None:
    one, other = make(), make()
    feed(one, stream(600))
    one.learn("desk")
    one.promote("desk")
    other.states()
    one._roll_back("desk", "the audits of one", 700)
    other._roll_back("desk", "the audits of the other", 690)
    assert [e.detail["at"] for e in one.log.events("desk") if e.kind == "rolled_back"] == [700]
    state = one.states()["desk"]
    assert (state.since, state.reason) == (700, "the audits of one")


def test_unfamiliar_calls_escalate(make: Callable[..., Takeover]) -> None:
    takeover = make()
    feed(takeover, stream(600))
    takeover.learn("desk")
    takeover.promote("desk")
    verdict = takeover.answer("desk", Call.of("Где карта", "").to_request())
    assert verdict.reply is None
    assert "unlike" in verdict.reason


def test_a_task_handed_back_while_it_is_learned_gets_no_student_of_the_calls_before(
    make: Callable[..., Takeover], monkeypatch: pytest.MonkeyPatch
) -> None:
    takeover, other = make(), make()
    feed(takeover, stream(600))
    takeover.learn("desk")
    takeover.promote("desk")
    fit = WordStudent.fit

    def handed_back(self: WordStudent, *given: Any) -> WordStudent:
        other.roll_back("desk", "the answers have changed")
        return fit(self, *given)

    monkeypatch.setattr(WordStudent, "fit", handed_back)
    with pytest.raises(TaskError, match="handed back while it was learned \\(the answers have changed\\)"):
        takeover.learn("desk")
    state = takeover.state("desk")
    assert (state.phase, state.n_attempts, state.reason) == ("rolled_back", 0, "the answers have changed")
    assert state.certificate is None


def instructed(system: str, seed: int = 0) -> list[Call]:
    return [
        c.replace(request=Call.of(c.prompt, "", system=system, model="m").request, task=None)
        for c in stream(600, seed=seed)
    ]


def test_a_process_that_was_not_the_first_to_see_a_changed_instruction_lets_the_next_student_answer(
    make: Callable[..., Takeover],
) -> None:
    first, second = make(), make()

    def pass_by(calls: list[Call], last: int) -> None:
        for call in calls:
            tasks = {takeover.task_of(orjson.loads(call.request), {}) for takeover in (first, second)}
            first.log.append(call.replace(task=tasks.pop()))
        first.log.flush()
        for takeover in (first, second):
            for call in takeover.log.calls(after=last):
                takeover.observe(call)
            takeover.flush()
            second.states()

    pass_by(instructed("You are the front desk of a shop. Answer with exactly one intent of the list."), 0)
    (name,) = first.states()
    first.learn(name)
    first.promote(name)
    second.states()
    pass_by(instructed("You are the front desk of a shop. Answer with one intent or two of the list.", 1), 600)
    assert first.state(name).phase == "rolled_back"
    first.learn(name)
    first.promote(name)
    second.states()
    request = next(second.log.calls(newest_first=True)).to_request()
    assert second.answer(name, request).reason != "the instruction has changed"


def test_a_changed_instruction_hands_the_task_back(make: Callable[..., Takeover]) -> None:
    takeover = make()
    system = "You are the front desk of a shop. Answer with exactly one intent from the list."
    calls = [
        c.replace(
            request=orjson.dumps(
                {
                    "model": "m",
                    "messages": [{"role": "system", "content": system}, {"role": "user", "content": c.prompt}],
                }
            )
        )
        for c in stream(600)
    ]
    for call in calls:
        task = takeover.task_of(orjson.loads(call.request), {})
        takeover.log.append(call.replace(task=task))
    takeover.log.flush()
    for call in takeover.log.calls():
        takeover.observe(call)
    takeover.flush()
    (name,) = takeover.states()
    takeover.learn(name)
    takeover.promote(name)
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": system.replace("exactly one intent", "one or two intents")},
            {"role": "user", "content": "please card"},
        ],
    }
    assert takeover.task_of(body, {}) == name
    assert takeover.answer(name, Call.of("card", "").to_request()).reply is None
    call = Call("changed", 0.0, task=name, request=orjson.dumps(body), seq=10_000)
    takeover.observe(call)
    state = takeover.state(name)
    assert state.phase == "rolled_back"
    assert "instruction" in state.reason


def test_a_new_target_replaces_what_was_certified_for_another_and_a_failed_attempt_leaves_it(
    make: Callable[..., Takeover],
) -> None:
    takeover = make()
    feed(takeover, stream(2000, noise=0.05))
    takeover.learn("desk", Target("system", 0.8))
    takeover.promote("desk")
    strict = takeover.learn("desk", Target("system", 0.97)).certificate
    state = takeover.state("desk")
    assert strict.ok
    assert (state.phase, state.version, state.certificate) == ("live", "v2", strict)
    assert not takeover.learn("desk", Target("system", 0.9999)).certificate.ok
    state = takeover.state("desk")
    assert (state.phase, state.version, state.reason) == ("live", "v2", strict.reason)
    assert takeover.promote("desk").reason == strict.reason


def test_rolling_back_what_no_student_serves_keeps_the_calls_to_learn_from(make: Callable[..., Takeover]) -> None:
    takeover = make()
    feed(takeover, stream(600))
    assert takeover.roll_back("desk").phase == "observing"
    takeover.learn("desk")
    takeover.roll_back("desk", "a test")
    feed(takeover, stream(100, seed=1))
    assert takeover.roll_back("desk").reason == "a test"
    assert len(takeover.lessons("desk")) == 100


def test_a_task_with_too_few_calls_is_told_so_whatever_its_answers_look_like(make: Callable[..., Takeover]) -> None:
    takeover = make()
    feed(takeover, [Call.of(f"text {i}", f"intent {i}", task="desk") for i in range(20)])
    with pytest.raises(InputError, match="20 usable calls"):
        takeover.learn("desk")
    assert takeover.state("desk").kind == ""


@pytest.mark.parametrize("name", ["../outside", "/outside", "..", "a/../../outside", "a%2Fb", "..\\outside", "é" * 199])
def test_no_name_of_a_task_leads_out_of_the_folder_of_students(
    make: Callable[..., Takeover], tmp_path: Path, name: str
) -> None:
    takeover = make()
    for call in stream(600):
        takeover.task_of(orjson.loads(call.request), {"x-pilotfish-task": name})
        takeover.log.append(call.replace(task=name))
    takeover.log.flush()
    for call in takeover.log.calls():
        takeover.observe(call)
    takeover.learn(name)
    takeover.promote(name)
    assert takeover.answer(name, stream(1)[0].to_request()).reply is not None
    (kept,) = (tmp_path / "students").iterdir()
    assert (kept / "v1" / "learned.json").is_file()
    assert (tmp_path / "students").stat().st_mode & 0o077 == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"students", "traffic.db", "traffic.db-wal", "traffic.db-shm"}


def test_learning_is_locked_and_the_lock_is_let_go_after_a_failure(make: Callable[..., Takeover]) -> None:
    takeover = make()
    feed(takeover, stream(30))
    with pytest.raises(InputError, match="30 usable calls"):
        takeover.learn("desk")
    assert not takeover.state("desk").learning
    with takeover._learning("desk", None), pytest.raises(TaskLockedError, match="another process"):
        make().learn("desk")


def test_a_student_that_cannot_be_written_is_told_of(make: Callable[..., Takeover], tmp_path: Path) -> None:
    takeover = make()
    feed(takeover, stream(300))
    (tmp_path / "students" / "desk").mkdir(parents=True)
    (tmp_path / "students" / "desk" / "v1").write_text("no folder")
    with pytest.raises(OSError):
        takeover.learn("desk")
    state = takeover.state("desk")
    assert "v1" in state.reason
    assert state.learn_at >= 1.5 * state.n_seen


def test_a_process_killed_while_it_learns_keeps_nobody_from_learning(make: Callable[..., Takeover]) -> None:
    asked: list[str] = []
    takeover = make(auto=asked.append)
    feed(takeover, stream(300))
    assert asked == ["desk"]
    takeover._update("desk", lambda s: s.replace(learning=time.time()))
    feed(takeover, stream(200, seed=1))
    assert len(asked) > 1
    assert takeover.learn("desk").certificate.ok


def test_what_cannot_be_done_is_said(make: Callable[..., Takeover]) -> None:
    takeover = make()
    with pytest.raises(UnknownTaskError, match="none has been found yet"):
        takeover.learn("nothing")
    feed(takeover, [Call.of(f"text {i}", f"A sentence on matter {i}.", task="desk") for i in range(100)])
    with pytest.raises(TaskError, match="kind 'text'"):
        takeover.learn("desk")
    with pytest.raises(TaskError, match="no certified student"):
        takeover.promote("desk")
    with pytest.raises(InputError, match="audit_share"):
        make(audit_share=0.0)


def test_the_attempts_share_the_risk(make: Callable[..., Takeover]) -> None:
    takeover = make()
    feed(takeover, stream(600))
    first = takeover.learn("desk").certificate.target.delta
    second = takeover.learn("desk").certificate.target.delta
    assert (first, second) == pytest.approx((TARGET.delta / 2, TARGET.delta / 6))


def test_a_student_is_the_same_whoever_learns_it(make: Callable[..., Takeover], tmp_path: Path) -> None:
    takeover = make()
    feed(takeover, stream(600))
    takeover.learn("desk")
    first = (tmp_path / "students/desk/v1/votes.json").read_bytes()
    lessons = takeover.lessons("desk")
    from pilotfish.takeover.learning import learn

    again = learn(lessons, TARGET, WordStudent, seed=0)
    again.student.save(tmp_path)
    assert (tmp_path / "votes.json").read_bytes() == first


def test_a_replay_takes_over_and_keeps_its_target() -> None:
    made = replay(stream(3000), WordStudent, target=TARGET)
    assert made.first_local is not None
    assert made.first_local < 600
    assert made.local_share > 0.5
    assert made.agreement >= 0.95
    assert sum(made.cost) < 0.55 * sum(made.cost_of_large)
    assert [kind for _, kind, _ in made.events].count("promoted") == 1


def test_patience_spends_no_risk_on_a_student_that_promises_little(make: Callable[..., Takeover]) -> None:
    takeover = make(target=Target("answers", 0.9999))
    feed(takeover, stream(600))
    unread = takeover.learn("desk", patient=True)
    assert unread.certificate.n == 0
    assert "no held-out answer was read" in takeover.state("desk").reason
    assert takeover.state("desk").n_attempts == 0
    takeover.learn("desk")
    assert takeover.state("desk").n_attempts == 1


def test_promises_count_what_confidence_expects_to_lose() -> None:
    target = Target("system", 0.97)
    sure = np.concatenate([np.full(500, 1.0), np.full(500, 0.5)])
    # 30 wrong of 1,000 would be 3 %; the bound leaves room for 20, which is 40 calls of even odds.
    allowed = next(k for k in range(40) if stats.binom.cdf(k, 1000, 0.03) > 0.05)
    assert promised(sure, target) == pytest.approx((500 + 2 * (allowed - 1)) / 1000)


def test_replies_that_say_nothing_count_as_different_and_are_not_learned(make: Callable[..., Takeover]) -> None:
    takeover = make()
    calls = stream(1200, noise=0.0)
    silent = orjson.dumps({"choices": [{"message": {"content": None, "tool_calls": []}}]})
    tools = orjson.dumps({"choices": [{"message": {"content": None, "tool_calls": [{"id": "1"}]}}]})
    feed(takeover, [c.replace(reply={0: silent, 1: tools}.get(i % 12, c.reply)) for i, c in enumerate(calls)])
    assert len(takeover.lessons("desk")) == 1100
    learned = takeover.learn("desk", Target("system", 0.85))
    assert 0.05 < learned.certificate.loss < 0.13
    assert "" not in learned.student.known
    assert learned.certificate.ok
    assert not takeover.learn("desk", Target("answers", 0.97)).certificate.ok


def test_young_tasks_are_compared_more_often_while_learning_goes_on(make: Callable[..., Takeover]) -> None:
    made = certify(np.linspace(1, 0, 1000), np.arange(1000) >= 500, Target("system", 0.97))
    state = TaskState(Task("desk", "header"), n_seen=2000, certificate=made)
    young = make()._share_compared(state, True)
    assert 0.1 < young == pytest.approx((1 - made.coverage) * 800 / 2000)
    assert make()._share_compared(state.replace(n_seen=100_000), True) == 0.05
    assert make()._share_compared(state, False) == 0.05


def test_a_ceiling_of_spending_counts_audits_and_calls_without_a_price(make: Callable[..., Takeover]) -> None:
    takeover = make(audit_share=0.5)
    feed(takeover, [call.replace(cost=0.0) for call in stream(600)])
    ceiling = Target("system", 0.9, max_spend=0.0008)
    unknown = takeover.learn("desk", ceiling).certificate
    assert not unknown.ok
    assert "the mean spend per call is unknown" in unknown.reason
    feed(takeover, stream(1200, seed=1))
    made = takeover.learn("desk", ceiling).certificate
    assert made.ok
    assert made.spend_upper is not None
    assert (1 - 0.5 * made.coverage) * 0.001 < made.spend_upper


def test_permuted_labels_are_handed_back_and_learned_anew() -> None:
    turned = dict(zip(WORDS, [*list(WORDS.values())[1:], "card arrival"], strict=True))
    made = replay(stream(2000) + stream(2500, seed=1, truth=turned), WordStudent, target=TARGET)
    back = next(at for at, kind, _ in made.events if kind == "rolled_back")
    wrong = sum(made.local[i] and not made.agreed[i] for i in range(2000, back))
    assert wrong <= 60
    assert back - 2000 < 200
    assert any(made.local[back:])
    assert sum(a for a, x in zip(made.agreed[back:], made.local[back:], strict=True) if x) >= 0.9 * sum(
        made.local[back:]
    )


def test_unchanged_traffic_is_never_handed_back() -> None:
    for seed in range(3):
        made = replay(stream(3000, seed=seed), WordStudent, target=TARGET, seed=seed)
        assert not [reason for _, kind, reason in made.events if kind == "rolled_back"]


def test_a_task_that_cannot_be_learned_is_not_tried_at_every_call(make: Callable[..., Takeover]) -> None:
    asked: list[str] = []
    takeover = make(auto=asked.append)
    feed(takeover, [Call.of(f"text {i}", f"A sentence on matter {i}.", task="desk") for i in range(300)])
    assert asked == ["desk"]
    with pytest.raises(TaskError, match="kind 'text'"):
        takeover.learn("desk")
    state = takeover.state("desk")
    assert state.learn_at >= 1.5 * state.n_seen
    assert "kind 'text'" in state.reason
