"""The demo's app and its messages; the demo itself is run by ``make demo``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from pilotfish.demo.app import INTENTS, conversation, tickets
from pilotfish.demo.run import run
from pilotfish.errors import InputError
from pilotfish.traffic.tasks import TaskIndex


def test_messages_are_many_distinct_and_never_shown_as_examples() -> None:
    ordinary, fresh = tickets()
    texts = [ticket.message for ticket in [*ordinary, *fresh]]
    assert len(set(texts)) == len(texts) > 450
    shown = {turn["content"] for turn in conversation("")[:-1]}
    assert not shown & set(texts)
    counts = Counter(ticket.intent for ticket in ordinary)
    assert set(counts) == set(INTENTS)


def test_a_large_model_that_nothing_serves_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match="large is 'nope'"):
        run("nope", tmp_path / "out", Console())
    assert not (tmp_path / "out").exists()


def test_the_app_makes_one_task_and_its_new_prompt_is_a_change() -> None:
    from dataclasses import replace

    index = TaskIndex()
    ordinary, fresh = tickets()
    for ticket in ordinary[:5]:
        index.assign({"model": "m", "messages": conversation(ticket.message)}, {})
    (task,) = index.tasks.values()
    index.put(replace(task, frozen=True))
    same = index.assign({"model": "m", "messages": conversation(fresh[0].message)}, {})
    new = index.assign({"model": "m", "messages": conversation(fresh[0].message, with_scooters=True)}, {})
    assert same is not None
    assert not same.changed
    assert new is not None
    assert new.changed
