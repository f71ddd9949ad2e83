"""The state of a task: observing, shadow, live or rolled back; kept in the log, changed in one transaction."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pilotfish.takeover.certify import Certificate, Target
from pilotfish.takeover.watch import Watch
from pilotfish.traffic.tasks import Task

__all__ = ["Phase", "TaskState", "folder_of"]

Phase = Literal["observing", "shadow", "live", "rolled_back"]
_FIRST_ATTEMPT = 250
# A file system takes 255 bytes.
_LONGEST_NAME = 240


def folder_of(students: Path, task: str) -> Path:
    """Where a task's students are kept. Clients choose names of tasks: none leads out of the folder of all students.

    Examples
    --------
    >>> folder_of(Path("students"), "desk").as_posix(), folder_of(Path("students"), "../desk").as_posix()
    ('students/desk', 'students/%2E.%2Fdesk')
    """
    name = re.sub(r"^\.|[%/\\:\0]", lambda found: f"%{ord(found[0]):02X}", task)
    if len(name.encode()) > _LONGEST_NAME:
        name = f"{name[:40]}-{hashlib.sha256(task.encode()).hexdigest()}"
    return students / name


@dataclass(frozen=True, slots=True)
class TaskState:
    """What is known and decided about one task.

    Parameters
    ----------
    task : Task
        The task itself.
    phase : {'observing', 'shadow', 'live', 'rolled_back'}
        ``observing``: no certified student. ``shadow``: certified, predicts, answers nothing. ``live``: answers.
        ``rolled_back``: was live until something changed; learning anew.
    kind : str
        The kind of its answers, as far as known.
    version : str
        The student in force; empty when there is none.
    n_versions : int
        Students made so far.
    target : Target
        What to keep.
    certificate : Certificate or None
        The certificate in force.
    watch : Watch or None
        The audit in force.
    since : int
        Position in the log after which calls are learned from; moved when the task is rolled back.
    n_attempts : int
        Certificates tried since then; the risk is shared among them.
    n_seen : int
        Usable calls of the large model since then.
    learn_at : int
        Number of usable calls at which the next attempt is due.
    learning : float
        Unix time at which a process began to learn; 0 when none does.
    reason : str
        Why the task is in its phase.
    """

    task: Task
    phase: Phase = "observing"
    kind: str = ""
    version: str = ""
    n_versions: int = 0
    target: Target = field(default_factory=Target)
    certificate: Certificate | None = None
    watch: Watch | None = None
    since: int = 0
    n_attempts: int = 0
    n_seen: int = 0
    learn_at: int = _FIRST_ATTEMPT
    learning: float = 0.0
    reason: str = "collecting calls"

    @property
    def attempt_risk(self) -> float:
        """The part of the risk that the next certificate may use: 1/2, 1/6, 1/12, ... of it, which sum to all of it."""
        j = self.n_attempts + 1
        return self.target.delta / (j * (j + 1))

    @property
    def has_student(self) -> bool:
        """Whether a student predicts: in shadow or live."""
        return self.phase in ("shadow", "live")

    def replace(self, **changes: Any) -> TaskState:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def rolled_back(self, reason: str, since: int) -> TaskState:
        """The state after a breach: the large model answers, and learning starts anew from ``since`` on."""
        return self.replace(
            phase="rolled_back",
            watch=None,
            certificate=None,
            since=since,
            n_attempts=0,
            n_seen=0,
            learn_at=_FIRST_ATTEMPT,
            reason=reason,
        )

    def to_json(self) -> dict[str, Any]:
        """Write as plain data."""
        data = {name: getattr(self, name) for name in self.__slots__}
        data["task"] = self.task.to_json()
        data["target"] = asdict(self.target)
        data["certificate"] = None if self.certificate is None else self.certificate.to_json()
        data["watch"] = None if self.watch is None else self.watch.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskState:
        """Read back."""
        values = dict(data)
        values["task"] = Task.from_json(values["task"])
        values["target"] = Target(**values["target"])
        values["certificate"] = None if values["certificate"] is None else Certificate.from_json(values["certificate"])
        values["watch"] = None if values["watch"] is None else Watch.from_json(values["watch"])
        return cls(**values)
