"""Replay: what a takeover would have cost and got right on traffic that was logged before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from pilotfish.errors import InputError, TaskError
from pilotfish.takeover.certify import Target
from pilotfish.takeover.lessons import large_answer
from pilotfish.takeover.service import Takeover
from pilotfish.traffic.calls import UPSTREAM, Call, Verdict, completion_body
from pilotfish.traffic.log import TrafficLog
from pilotfish.traffic.tasks import normalise
from pilotfish.training.students import Student
from pilotfish.types import Request

__all__ = ["Replayed", "replay"]

_FLUSH_CALLS = 16


@dataclass
class Replayed:
    """What happened in a replay, one entry per call in order.

    Attributes
    ----------
    local : list of bool
        Whether the student answered.
    agreed : list of bool
        Whether the reply agrees with the large model's recorded answer.
    right : list of bool or None
        Whether the reply agrees with gold, where known.
    cost, cost_of_large : list of float
        US dollars: audits included, and what the large model alone would have taken.
    events : list of (int, str, str)
        Call number, kind and reason of everything that was decided.
    """

    local: list[bool] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)
    right: list[bool | None] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    cost_of_large: list[float] = field(default_factory=list)
    events: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def local_share(self) -> float:
        """Share of all calls the student answered."""
        return sum(self.local) / len(self.local) if self.local else 0.0

    @property
    def agreement(self) -> float:
        """Share of all replies that agree with the large model's recorded answer."""
        return sum(self.agreed) / len(self.agreed) if self.agreed else 1.0

    @property
    def first_local(self) -> int | None:
        """Number of the first call the student answered, from 0."""
        return self.local.index(True) if True in self.local else None


def replay(
    calls: Iterable[Call],
    student: type[Student],
    *,
    settings: Mapping[str, Any] | None = None,
    target: Target | None = None,
    audit_share: float = 0.05,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Replayed:
    """Run the takeover over logged calls, as if they came in now; the large model's recorded answers stand for it.

    Parameters
    ----------
    calls : iterable of Call
        In the order they came in; those the large model did not answer are left out.
    student : type
        The kind of student to fit.
    settings : mapping, optional
        What students are made with.
    target : Target, optional
        What to keep; 97 % of all replies at 95 % confidence when left out.
    audit_share : float
        Share of live calls that the large model is asked as well.
    seed : int
        Of the draws of audits.
    progress : callable, optional
        Told the number of calls done.
    """
    made = Replayed()
    due: list[str] = []
    with tempfile.TemporaryDirectory() as folder, TrafficLog(Path(folder) / "replay.db", "fast") as log:
        takeover = Takeover(
            log,
            Path(folder) / "students",
            student,
            settings=settings,
            target=target,
            audit_share=audit_share,
            auto=due.append,
            seed=seed,
        )
        last_event = 0
        for call in calls:
            said = large_answer(call)
            if said is None:
                continue
            _one(call, said, takeover, log, made)
            if len(made.local) % _FLUSH_CALLS and not due:
                continue
            takeover.flush(len(made.local))
            while due:
                task = due.pop()
                log.flush()
                try:
                    learned = takeover.learn(task, patient=True)
                except (InputError, TaskError):
                    continue
                if learned.certificate.ok and takeover.state(task).phase == "shadow":
                    takeover.promote(task)
            for event in log.events(after=last_event):
                last_event = event.seq
                made.events.append((len(made.local), event.kind, str(event.detail.get("reason", ""))))
            if progress is not None:
                progress(len(made.local))
    return made


def _one(call: Call, said: str, takeover: Takeover, log: TrafficLog, made: Replayed) -> None:
    headers = {"x-pilotfish-task": call.task} if call.task else {}
    task = takeover.task_of(orjson.loads(call.request), headers)
    verdict = Verdict(task)
    if task is not None and takeover.active(task):
        verdict = takeover.answer(task, Request.from_json(orjson.loads(call.request)))
    answer = said if verdict.reply is None else verdict.reply.text
    local = verdict.reply is not None
    audited = local and verdict.audit
    cost = call.cost if not local or audited else 0.0
    logged = call.replace(
        id=f"replay-{len(made.local)}",
        task=task,
        reply=completion_body(answer, call.model),
        answered_by=UPSTREAM if verdict.reply is None else verdict.reply.model,
        prediction=verdict.prediction,
        confidence=verdict.confidence,
        reason=verdict.reason,
        sampled=verdict.audit,
        audit=said if audited else None,
        cost=cost,
        seq=0,
    )
    log.post(logged)
    takeover.observe(logged.replace(seq=len(made.local) + 1))
    made.local.append(local)
    made.agreed.append(normalise(answer) == normalise(said))
    made.right.append(None if call.gold is None else normalise(answer) == normalise(call.gold))
    made.cost.append(cost)
    made.cost_of_large.append(call.cost)
