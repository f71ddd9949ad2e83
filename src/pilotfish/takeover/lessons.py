"""What a logged call teaches: the large model's answer to it, and whether that may certify."""

from __future__ import annotations

from collections.abc import Iterable

from pilotfish.errors import InputError
from pilotfish.takeover.learning import Lesson
from pilotfish.traffic.calls import UPSTREAM, Call, json_object
from pilotfish.traffic.tasks import Task

__all__ = ["is_random", "large_answer", "lessons_of"]


def large_answer(call: Call) -> str | None:
    """What the large model said to a call, whoever answered it; None when it was not asked or failed."""
    if call.audit is not None:
        return call.audit
    return call.answer if call.answered_by == UPSTREAM and call.status == 200 and call.complete else None


def is_random(call: Call) -> bool:
    """Whether the large model's answer was asked for whatever the student thought of the call.

    A student that was asked in vain has a confidence and no prediction: it may have been slow because it was in doubt.
    """
    return call.sampled or (call.prediction is None and call.confidence is None)


def lessons_of(calls: Iterable[Call], task: Task) -> list[Lesson]:
    """The calls of a task that can be learned from, or checked on: of replies that say nothing no answer is learned.

    A refusal without a word differs from whatever a student would have said. Calls of tools are no student's business.
    """
    made = []
    for call in calls:
        said = large_answer(call)
        if said is None or (not said.strip() and _calls_tools(call)):
            continue
        try:
            text = task.text_of(call.to_request())
        except InputError:
            continue
        made.append(Lesson(text, said, call.gold, is_random(call), call.cost, None))
    return made


def _calls_tools(call: Call) -> bool:
    match json_object(call.reply):
        case {"choices": [{"message": {"tool_calls": [_, *_]}}, *_]}:
            return True
    return False
