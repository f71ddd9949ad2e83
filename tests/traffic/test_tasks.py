"""Task discovery on prompts as applications send them."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.traffic.tasks import Task, TaskIndex, Template, kind_of, normalise
from pilotfish.types import Request

SYSTEM = "You are the front desk of a bank. Answer with exactly one intent from the list, nothing else."


def call(user: str, system: str | None = SYSTEM, model: str = "large") -> dict[str, object]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return {"model": model, "messages": [*head, {"role": "user", "content": user}]}


def text_of(index: TaskIndex, body: dict[str, object]) -> str:
    assigned = index.assign(body, {})
    assert assigned is not None
    return index.tasks[assigned.task].text_of(Request.from_json(body))


def test_one_system_prompt_is_one_task_and_the_message_is_what_varies() -> None:
    index = TaskIndex()
    index.assign(call("hi"), {})
    names = {index.assign(call(f"message {i}"), {}).task for i in range(20)}  # type: ignore[union-attr]
    assert len(names) == 1
    assert text_of(index, call("Where is my card?")) == "Where is my card?"


def test_parts_of_a_prompt_that_vary_become_gaps() -> None:
    index = TaskIndex()
    messages = ["Where is my card?", "I lost it again", "Cancel the last payment, please", "Card?"]
    bodies = [call(f"Sort this message into an intent of the bank.\nMessage: {m}\nIntent:", None) for m in messages]
    for body in bodies:
        index.assign(body, {})
    assert len(index.tasks) == 1
    assert [text_of(index, body) for body in bodies] == messages


def test_a_date_inside_the_system_prompt_does_not_split_the_task() -> None:
    index = TaskIndex()
    names = [index.assign(call("hi", f"Today is 2026-09-{d:02}. {SYSTEM}"), {}) for d in range(1, 20)]
    assert len({n.task for n in names if n}) == 1


def test_different_instructions_and_models_stay_apart() -> None:
    index = TaskIndex()
    other = "Translate the text that follows from English to French and keep all names as they are."
    for _ in range(2):
        index.assign(call("hi"), {})
        index.assign(call("hi", other), {})
        index.assign(call("hi", model="another"), {})
    assert len(index.tasks) == 3


def test_header_and_alias_come_first() -> None:
    index = TaskIndex(aliases=frozenset({"support"}))
    assert index.assign(call("hi"), {"x-pilotfish-task": "desk"}).task == "desk"  # type: ignore[union-attr]
    assert index.assign(call("hi", model="support"), {}).task == "support"  # type: ignore[union-attr]


def test_clients_make_no_endless_number_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfish.traffic.tasks.MOST_TASKS", 3)
    index = TaskIndex()
    made = [index.assign(call("hi"), {"x-pilotfish-task": f"user {i}"}) for i in range(5)]
    assert [a and a.task for a in made] == ["user 0", "user 1", "user 2", None, None]
    assert index.assign(call("hi"), {"x-pilotfish-task": "user 1"}).task == "user 1"  # type: ignore[union-attr]
    assert [index.assign(call("hi"), {}) for _ in range(3)] == [None] * 3
    assert len(index.tasks) == 3


def test_a_name_too_long_for_one_is_no_name() -> None:
    index = TaskIndex()
    made = [index.assign(call("hi"), {"x-pilotfish-task": "n" * 201}) for _ in range(2)]
    assert made == [None, index.assign(call("hi"), {})]


def test_a_changed_instruction_of_a_learned_task_is_told() -> None:
    index = TaskIndex()
    for text in ("hi", "hello"):
        index.assign(call(text), {})
    (task,) = index.tasks.values()
    index.put(replace(task, frozen=True))
    assert index.assign(call("hi"), {}).changed is False  # type: ignore[union-attr]
    changed = index.assign(call("hi", SYSTEM.replace("one intent", "one or two intents")), {})
    assert changed is not None
    assert changed.task == task.name
    assert changed.changed


def test_free_chat_makes_no_task() -> None:
    index = TaskIndex()
    chats = ["What is the capital of Peru?", "Write a poem on rain", "Why is 9.9 more than 9.11?", "hi"]
    assert all(index.assign(call(text, None), {}) is None for text in chats)


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": "no"}, {"messages": [3]}, {"messages": [{}]}])
def test_malformed_calls_have_no_task(body: dict[str, object]) -> None:
    assert TaskIndex().assign(body, {}) is None


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), st.data())
def test_a_template_matches_what_was_written_from_it(pieces: list[str], data: st.DataObject) -> None:
    gaps = [data.draw(st.text(max_size=8)) for _ in pieces[1:]]
    text = pieces[0] + "".join(g + p for g, p in zip(gaps, pieces[1:], strict=True))
    found = Template(tuple(pieces)).match(text)
    assert found is not None
    assert pieces[0] + "".join(g + p for g, p in zip(found, pieces[1:], strict=True)) == text


@given(st.text(max_size=60), st.text(max_size=60))
def test_an_alignment_matches_both_texts(a: str, b: str) -> None:
    head = "Please sort the message that follows: "
    made = Template.align(head + a, head + b)
    if made is not None:
        assert made.match(head + a) is not None
        assert made.match(head + b) is not None


def words(n: int, seed: int, n_known: int = 3000) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(n_known)}" for _ in range(n))


def test_long_prompts_are_told_apart_in_no_time() -> None:
    index = TaskIndex()
    began = time.perf_counter()
    for i in range(20):
        index.assign(call(f"Answer from this context: {words(2800, i)}", None), {})
    assert time.perf_counter() - began < 5
    assert not index.tasks


def test_long_prompts_with_several_gaps_are_one_task() -> None:
    index = TaskIndex()
    first, second = words(900, 0), words(900, 1)
    bodies = [
        call(
            f"On day {words(2, i)} sort. {first} Kind: {words(9, i + 20)}. {second} Message: {words(30, i + 40)}", None
        )
        for i in range(4)
    ]
    for body in bodies:
        index.assign(body, {})
    assert len(index.tasks) == 1
    assert text_of(index, bodies[3]) == f"{words(2, 3)}\n{words(9, 23)}\n{words(30, 43)}"


def with_examples(
    user: str, examples: tuple[str, ...] = ("Lost card", "lost", "Flat tyre", "damage")
) -> dict[str, object]:
    body = call(user)
    roles = ["user", "assistant"] * len(examples)
    turns = [{"role": role, "content": text} for role, text in zip(roles, examples, strict=False)]
    messages = body["messages"]
    assert isinstance(messages, list)
    return body | {"messages": [messages[0], *turns, messages[-1]]}


def test_worked_examples_are_part_of_the_instruction() -> None:
    index = TaskIndex()
    for text in ("hi", "hello"):
        index.assign(with_examples(text), {})
    assert text_of(index, with_examples("Where is my card?")) == "Where is my card?"
    (task,) = index.tasks.values()
    said = ["user: Lost card", "assistant: lost", "user: Flat tyre", "assistant: damage"]
    assert task.instruction.split("\n\n") == [SYSTEM, *said]
    assert Task("desk", "header").instruction == ""
    assert (
        Task("desk", "prompt", "m", Template(("Sort: ", " Answer in a word."))).instruction
        == "Sort: ... Answer in a word."
    )
    (task,) = index.tasks.values()
    index.put(replace(task, frozen=True))
    assert index.assign(with_examples("hi"), {}).changed is False  # type: ignore[union-attr]
    fewer = index.assign(with_examples("hi", ("Lost card", "lost")), {})
    assert fewer is not None
    assert fewer.changed


def test_a_conversation_is_no_example() -> None:
    index = TaskIndex()
    for first in ("one", "two", "three"):
        index.assign(with_examples("and now?", (first, "answer")), {})
    assert (
        text_of(index, with_examples("and now?", ("four", "answer"))) == "user: four\nassistant: answer\nuser: and now?"
    )


def test_tasks_survive_json() -> None:
    task = Task("t", "system", "m", Template(("a", "b")), (("user", "x"),), True)
    assert Task.from_json(task.to_json()) == task


def test_kinds_and_normal_forms() -> None:
    assert kind_of(["card arrival", "Card_arrival", "top up", "top up"] * 10) == "closed_set"
    assert kind_of(['{"intent": "a", "n": 1}', ' {"intent": "b"}'] * 5) == "json"
    assert kind_of([f"A sentence about matter {i}." for i in range(50)]) == "text"
    assert kind_of([]) == "text"
    assert normalise("**Refund_not showing  up**\n") == "refund not showing up"
