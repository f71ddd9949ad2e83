"""The takeover in service: tells tasks apart, lets students answer, watches them, and hands tasks back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pilotfish.errors import InputError, PilotfishError, TaskError, TaskLockedError, UnknownTaskError
from pilotfish.files import locked
from pilotfish.protocols import Progress
from pilotfish.takeover.certify import Target
from pilotfish.takeover.learning import LEAST_LESSONS, Learned, Lesson, learn
from pilotfish.takeover.lessons import large_answer, lessons_of
from pilotfish.takeover.state import TaskState, folder_of
from pilotfish.takeover.watch import Watch
from pilotfish.traffic.calls import UPSTREAM, Call, Verdict
from pilotfish.traffic.log import TrafficLog
from pilotfish.traffic.tasks import Task, TaskIndex, kind_of, normalise
from pilotfish.training.students import Student
from pilotfish.types import Reply, Request, Usage

__all__ = ["Takeover"]

_REFRESH_SECONDS = 0.05
_FLUSH_SECONDS = 0.25
_FLUSH_EVENTS = 64
_GROWTH = 1.5
_LEAST_WORTH = 0.1
# A student's confidence comes of folds that saw less than it did: it promises less than it can keep.
_PROMISED = 0.8
# While learning goes on by itself: about how many calls are compared at random as the calls to learn from double,
# where everything is still to gain.
_COMPARED_PER_DOUBLING = 800
_MOST_COMPARED = 0.5
_UNFAMILIAR = "unlike the calls learned from"

_Event = tuple[str, bool]


class Takeover:
    """Lets certified students answer the calls of their tasks, with one log as the only memory.

    Several processes may share a log: each keeps a copy of the states and looks for changes.

    Parameters
    ----------
    log : TrafficLog
        Where calls and states are kept.
    folder : Path
        Where students are kept, one folder a version.
    student : type
        The kind of student to fit and load.
    settings : mapping, optional
        What students are made with.
    target : Target
        For tasks that have none of their own.
    audit_share : float
        Least share of live calls that the large model is asked as well, in (0, 1].
    auto : callable or None
        Called with a task's name when an attempt to learn is due; None leaves learning to the user. While a task is
        young, more of its live calls are compared, so that the next certificate does not rest on a few.
    aliases : frozenset of str
        Model names that are names of tasks.
    seed : int or None
        Of the draws of audits; None takes it from the system.
    """

    def __init__(
        self,
        log: TrafficLog,
        folder: Path,
        student: type[Student],
        *,
        settings: Mapping[str, Any] | None = None,
        target: Target | None = None,
        audit_share: float = 0.05,
        auto: Callable[[str], None] | None = None,
        aliases: frozenset[str] = frozenset(),
        seed: int | None = None,
    ) -> None:
        if not 0 < audit_share <= 1:
            raise InputError(f"audit_share is {audit_share}: give a share above 0 and up to 1, such as 0.05.")
        self.log = log
        self.folder = folder
        self.target = target if target is not None else Target()
        self.audit_share = audit_share
        self.auto = auto
        self.student = student
        self.settings = settings or {}
        self.index = TaskIndex(aliases=aliases)
        self._random = random.Random(seed)  # noqa: S311 - draws of audits are no secret
        self._documents: dict[str, dict[str, Any]] = {}
        self._states: dict[str, TaskState] = {}
        self._students: dict[str, tuple[str, Student]] = {}
        self._changed: set[str] = set()
        self._asked: dict[str, int] = {}
        self._events: dict[str, list[_Event]] = {}
        self._flushed = 0.0
        self._looked = 0.0
        self._lock = threading.RLock()
        self.refresh(force=True)

    # What the gateway asks.

    def task_of(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
        """Name the task of a call, or None. Microseconds for instructions seen before."""
        assigned = self.index.assign(body, headers)
        if assigned is None:
            return None
        if assigned.changed:
            self._changed.add(assigned.task)
        return assigned.task

    def active(self, task: str) -> bool:
        """Whether the task has a student in shadow or live."""
        self.refresh()
        state = self._states.get(task)
        return state is not None and state.has_student

    def answer(self, task: str, request: Request) -> Verdict:
        """Judge one call: what the student would say, and whether it may."""
        state = self._states.get(task)
        if state is None or not state.has_student or state.certificate is None:
            return Verdict(task, reason="no student in service")
        student = self._student(task, state.version)
        predicted = student.predict([state.task.text_of(request)])
        label, confidence = predicted.labels[0], float(predicted.confidence[0])
        familiar = bool(predicted.familiar[0])
        sampled = state.phase == "shadow" or self._random.random() < self._share_compared(state, self.auto is not None)
        eligible = familiar and confidence >= state.certificate.threshold
        local = False
        if state.phase == "shadow":
            reason = "shadow"
        elif task in self._changed:
            reason = "the instruction has changed"
        elif not familiar:
            reason = _UNFAMILIAR
        elif not eligible:
            reason = f"confidence below {state.certificate.threshold:.3f}"
        elif state.watch is not None and state.watch.holding:
            reason = "compared after a failed audit"
        else:
            reason, local = f"confidence at least {state.certificate.threshold:.3f}", True
        reply = None
        if local:
            reply = Reply(label, f"student:{state.version}", Usage(), confidence, reason=reason)
        return Verdict(task, reply, label, confidence, sampled, reason)

    def _share_compared(self, state: TaskState, by_itself: bool) -> float:
        """Share of the local answers that is compared; where learning goes on by itself more while a task is young."""
        if not by_itself:
            return self.audit_share
        to_gain = 1 - state.certificate.coverage if state.certificate is not None else 1.0
        return max(self.audit_share, min(_MOST_COMPARED, to_gain * _COMPARED_PER_DOUBLING / max(1, state.n_seen)))

    def observe(self, call: Call) -> None:
        """Take in a call that has been logged: new tasks, comparisons, and the due date of the next lesson."""
        if call.task is None:
            return
        with self._lock:
            self.refresh()
            name = call.task
            state = self._states.get(name)
            task = self.index.tasks.get(name)
            if state is None:
                self._update(name, lambda s: s)
                state = self._states[name]
            elif task is not None and task != state.task and not state.task.frozen:
                self._update(name, lambda s: s.replace(task=task) if not s.task.frozen else s)
            if name in self._changed:
                if state.has_student:
                    self._roll_back(name, "the instruction has changed since the student learned it", call.seq)
                    return
                # Another process was the first to hand it back: the next student learns the new instruction.
                self._changed.discard(name)
            events = self._compared(call, state)
            self._events.setdefault(name, []).extend(events)
            urgent = ("audit", True) in events
            if urgent or len(self._events[name]) >= _FLUSH_EVENTS or time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self.flush(call.seq)

    def _compared(self, call: Call, state: TaskState) -> list[_Event]:
        """The comparisons a call allows, as events for the watch; ``usable`` counts towards the next lesson."""
        said = large_answer(call)
        events: list[_Event] = []
        if said is not None:
            events.append(("usable", True))
        if state.phase != "live" or state.certificate is None or call.prediction is None or call.seq <= state.since:
            return events
        student = self._student(call.task or "", state.version)
        unfamiliar = call.reason == _UNFAMILIAR
        events.append(("inputs", unfamiliar))
        if said is None:
            return events
        wrong = normalise(said) != normalise(call.prediction)
        eligible = not unfamiliar and (call.confidence or 0.0) >= state.certificate.threshold
        events.append(("audit" if eligible else "escalated", wrong))
        if call.answered_by == UPSTREAM:
            events.append(("labels", normalise(said) not in student.known))
        return events

    def flush(self, seq: int | None = None) -> None:
        """Write what was observed since the last time to the states, and act on it."""
        with self._lock:
            self._flushed = time.monotonic()
            pending, self._events = self._events, {}
            for name, events in pending.items():
                if not events:
                    continue
                state = self._update(name, partial(_watched, events=events))
                if state.watch is not None and state.watch.breach:
                    self._roll_back(name, state.watch.breach, seq)
                elif self.auto is not None and self._is_due(name, state):
                    self._asked[name] = int(state.n_seen * _GROWTH)
                    self.auto(name)

    def _is_due(self, name: str, state: TaskState) -> bool:
        """Whether an attempt to learn is due that this process has not asked for, or in vain many calls ago."""
        if state.n_seen < max(state.learn_at, self._asked.get(name, 0)):
            return False
        if not state.learning:
            return True
        # A process that was killed while it learned has left its mark, but not its lock.
        with locked(self._lock_file(name)) as free:
            return free

    # What the user asks.

    def states(self) -> dict[str, TaskState]:
        """All tasks with their states."""
        self.refresh(force=True)
        return dict(self._states)

    def state(self, task: str) -> TaskState:
        """One task's state.

        Raises
        ------
        UnknownTaskError
            When there is no task of that name.
        """
        states = self.states()
        if task not in states:
            known = f"use one of {', '.join(sorted(states))}" if states else "none has been found yet, send more calls"
            raise UnknownTaskError(f"task is {task!r}, which is not known: {known}.")
        return states[task]

    def learn(
        self, task: str, target: Target | None = None, *, by_class: bool = False, patient: bool = False,
        progress: Progress | None = None,
    ) -> Learned:  # fmt: skip
        """Train and certify a student on the task's calls; certified, it goes into shadow.

        A student in service stays when the new one cannot answer more of what is asked for, or nothing of it.

        Parameters
        ----------
        task : str
            Its name.
        target : Target, optional
            What to keep from now on.
        by_class : bool
            Give every answer its own bound in the certificate.
        patient : bool
            Spend none of the risk on a student that promises little, or clearly less than the one in service answers.
        progress : callable, optional
            Told how many calls were read, and of how many, by what takes long.

        Raises
        ------
        TaskLockedError
            When another process is learning the task.
        TaskError
            When the task's answers are not of a kind that can be learned, or it was handed back meanwhile.
        """
        with self._learning(task, target) as state:
            lessons = self.lessons(task)
            enough = len(lessons) >= LEAST_LESSONS
            kind = kind_of([x.answer for x in lessons if x.answer.strip()]) if enough else state.kind
            self._update(task, lambda s: s.replace(kind=kind))
            if enough and kind != "closed_set":
                raise TaskError(
                    f"task is {task!r}, whose answers are of kind {kind!r}: only closed sets of answers can be learned."
                )
            asked = replace(state.target, confidence=1 - state.attempt_risk)
            worth = None
            if patient:
                held = state.certificate if state.phase == "live" else None
                in_force = held.coverage if held is not None and held.is_for(state.target) else 0.0
                worth = max(_LEAST_WORTH, _PROMISED * in_force)
            # What the next student answers is not known yet: as many may be compared as if it were nothing.
            compared = self._share_compared(state.replace(certificate=None), patient)
            fresh = partial(self.student, **self.settings)
            told = state.task.instruction or self._system(task)
            learned = learn(
                lessons, asked, fresh, seed=state.n_versions, by_class=by_class, worth=worth,
                compared=compared, instruction=told, progress=progress,
            )  # fmt: skip
            opened = learned.certificate.n > 0
            version = f"v{state.n_versions + 1}"
            learned.save(folder_of(self.folder, task) / version)
            watch = Watch.for_certificate(
                learned.certificate,
                unknown_labels_upper=learned.unknown_labels_upper,
                unfamiliar_upper=learned.unfamiliar_upper,
                audit_share=self.audit_share,
            )

            def changed(s: TaskState) -> TaskState:
                s = s.replace(n_versions=s.n_versions + 1)
                if s.since != state.since:
                    return s
                s = s.replace(n_attempts=s.n_attempts + opened)
                s = s.replace(learn_at=max(s.learn_at, int(max(s.n_seen, len(lessons)) * _GROWTH)))
                held, new = s.certificate, learned.certificate
                serving = s.phase == "live" and held is not None
                if not new.ok:
                    return s.replace(reason=new.reason if held is None else held.reason)
                if serving and held is not None and held.is_for(s.target) and new.coverage <= held.coverage:
                    return s
                return s.replace(
                    phase="live" if serving else "shadow",
                    version=version,
                    certificate=learned.certificate,
                    watch=watch,
                    task=replace(s.task, frozen=True),
                    reason=learned.certificate.reason,
                )

            made = self._update(task, changed)
            why = learned.certificate.reason
            self.log.event(task, "learned", {"version": version, "in_force": made.version, "reason": why})
        if made.since != state.since:
            raise TaskError(
                f"task is {task!r}, which was handed back while it was learned ({made.reason}): learn it again from "
                "the calls that follow."
            )
        return learned

    def lessons(self, task: str) -> list[Lesson]:
        """The calls of a task that can be learned from."""
        state = self.state(task)
        return lessons_of(self.log.calls(task=task, after=state.since), state.task)

    def promote(self, task: str) -> TaskState:
        """Let a certified student answer.

        Raises
        ------
        TaskError
            When the task has no certified student.
        """

        def live(s: TaskState) -> TaskState:
            if s.certificate is None or not s.certificate.ok:
                raise TaskError(
                    f"task is {task!r}, which has no certified student: run 'pilotfish learn {task}' first."
                )
            return s.replace(phase="live", reason=s.certificate.reason)

        self.state(task)
        made = self._update(task, live)
        self.log.event(task, "promoted", {"version": made.version, "reason": made.reason, "at": self._last_seq()})
        return made

    def roll_back(self, task: str, reason: str = "by request") -> TaskState:
        """Hand the task back to the large model; one that no student serves stays as it is."""
        self.state(task)
        return self._roll_back(task, reason, self._last_seq())

    # Inside.

    def refresh(self, *, force: bool = False) -> None:
        """Look for states that other processes changed."""
        now = time.monotonic()
        if not force and now - self._looked < _REFRESH_SECONDS:
            return
        self._looked = now
        if not force and not self.log.changed():
            return
        with self._lock:
            before, self._documents = self._documents, self.log.states()
            for name, data in self._documents.items():
                if data is not before.get(name):
                    self._know(name, TaskState.from_json(data))

    def _update(self, name: str, change: Callable[[TaskState], TaskState]) -> TaskState:
        def changed(data: dict[str, Any]) -> dict[str, Any]:
            if data:
                state = TaskState.from_json(data)
            else:
                task = self.index.tasks.get(name) or Task(name, "header")
                state = TaskState(task, target=self.target)
            return change(state).to_json()

        made = TaskState.from_json(self.log.update_state(name, changed))
        self._know(name, made)
        return made

    def _know(self, name: str, state: TaskState) -> None:
        self._states[name] = state
        if self.index.tasks.get(name) != state.task:
            self.index.put(state.task)

    def _roll_back(self, name: str, reason: str, seq: int | None) -> TaskState:
        since = seq if seq is not None else self._last_seq()
        served = False

        def changed(s: TaskState) -> TaskState:
            nonlocal served
            served = s.has_student
            # Several processes see the same breach: the first one's position stands.
            return s.rolled_back(reason, since).replace(task=replace(s.task, frozen=False)) if served else s

        made = self._update(name, changed)
        self._events.pop(name, None)
        self._changed.discard(name)
        self._asked.pop(name, None)
        if served:
            self.log.event(name, "rolled_back", {"version": made.version, "reason": reason, "at": since})
        return made

    def _system(self, name: str) -> str:
        """The instruction of the newest call: a task that a header names may have any."""
        newest = next(self.log.calls(task=name, limit=1, newest_first=True), None)
        return newest.to_request().system if newest is not None else ""

    def _last_seq(self) -> int:
        newest = next(self.log.calls(limit=1, newest_first=True), None)
        return newest.seq if newest is not None else 0

    @contextmanager
    def _learning(self, name: str, target: Target | None) -> Iterator[TaskState]:
        self.state(name)
        # Like the log: students remember words of the calls.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._lock_file(name)) as free:
            if not free:
                raise TaskLockedError(f"task is {name!r}, which another process is learning: wait for it to finish.")
            began = time.time()
            state = self._update(name, lambda s: s.replace(learning=began, target=target or s.target))
            try:
                yield state
            except (PilotfishError, OSError) as error:
                # The next attempt waits for more calls, or a task that cannot be learned would be tried at every call.
                why = str(error)
                self._update(name, lambda s: s.replace(learn_at=int(max(s.n_seen, s.learn_at) * _GROWTH), reason=why))
                raise
            finally:
                self._update(name, lambda s: s.replace(learning=0.0))

    def _lock_file(self, name: str) -> Path:
        return folder_of(self.folder, name) / "learning.lock"

    def _student(self, task: str, version: str) -> Student:
        kept = self._students.get(task)
        if kept is None or kept[0] != version:
            kept = (version, self.student.load(folder_of(self.folder, task) / version))
            self._students[task] = kept
        return kept[1]


def _watched(state: TaskState, events: Sequence[_Event]) -> TaskState:
    n_usable = sum(name == "usable" for name, _ in events)
    watch = state.watch
    if watch is not None and state.phase == "live":
        take = {"audit": watch.audited, "escalated": watch.escalated, "labels": watch.labelled, "inputs": watch.seen}
        for name, event in events:
            if name in take:
                take[name](event)
    return state.replace(n_seen=state.n_seen + n_usable, watch=watch)
