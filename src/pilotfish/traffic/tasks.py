"""Task discovery: which calls belong together, what varies in them, and what kind of answer they want."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from pilotfish.answers import normalise
from pilotfish.traffic.templates import LEAST_WORDS, Template
from pilotfish.types import Request

__all__ = ["Assignment", "Kind", "Task", "TaskIndex", "Template", "kind_of", "normalise"]

Kind = Literal["closed_set", "json", "text"]
HEADER = "x-pilotfish-task"
MOST_TASKS = 1000
MOST_CHARACTERS = 200


def kind_of(answers: Sequence[str]) -> Kind:
    """Read the kind of a task off its answers.

    ``closed_set`` when most answers are short and were given more than once, ``json`` when nearly all are JSON
    objects, else ``text``.

    Examples
    --------
    >>> kind_of(["yes", "no"] * 20), kind_of(['{"a": 1}'] * 20), kind_of(["It depends on the day."])
    ('closed_set', 'json', 'text')
    """
    if not answers:
        return "text"
    if sum(_is_object(answer) for answer in answers) >= 0.95 * len(answers):
        return "json"
    counts = Counter(map(normalise, answers))
    repeated = sum(n for answer, n in counts.items() if n > 1 and len(answer) <= 80)
    return "closed_set" if repeated >= 0.85 * len(answers) else "text"


def _is_object(answer: str) -> bool:
    text = answer.strip()
    if not text.startswith("{"):
        return False
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


@dataclass(frozen=True)
class Task:
    """Calls that belong together.

    Parameters
    ----------
    name : str
        Its name: the header's or alias's, or made from the first words of its instruction.
    source : {'header', 'alias', 'system', 'prompt'}
        What identified it.
    model : str
        The model asked for.
    template : Template or None
        The instruction: the system prompt's, or the user prompt's where there is no system prompt.
    examples : tuple of (str, str), or None
        Turns, role and text, that every call has after the system prompt, such as worked examples: part of the
        instruction. None before the first call.
    frozen : bool
        Whether a student has learned it; then a changed instruction no longer widens the template.
    """

    name: str
    source: Literal["header", "alias", "system", "prompt"]
    model: str = ""
    template: Template | None = None
    examples: tuple[tuple[str, str], ...] | None = None
    frozen: bool = False

    @property
    def instruction(self) -> str:
        """What every call says, gaps as "..."; empty where that is not known."""
        said = [] if self.template is None else ["...".join(self.template.pieces)]
        return "\n\n".join([*said, *(f"{role}: {text}" for role, text in self.examples or ())])

    def text_of(self, request: Request) -> str:
        """What varies from call to call: the gaps of the instruction and the conversation's own words."""
        gaps: tuple[str, ...] = ()
        turns = [m for m in request.messages if m.role not in ("system", "developer")]
        shared = self.examples or ()
        if tuple((m.role, m.text) for m in turns[: len(shared)]) == shared:
            turns = turns[len(shared) :]
        if self.template is not None:
            found = self.template.match(request.system if self.source == "system" else request.prompt)
            gaps = found or ()
            if self.source == "prompt" and found is not None:
                return "\n".join(gap.strip() for gap in gaps if gap.strip())
        said = [m.text if m.role == "user" and len(turns) == 1 else f"{m.role}: {m.text}" for m in turns]
        return "\n".join([gap.strip() for gap in gaps if gap.strip()] + said)

    def to_json(self) -> dict[str, Any]:
        """Write as plain data."""
        pieces = None if self.template is None else list(self.template.pieces)
        return {
            "name": self.name,
            "source": self.source,
            "model": self.model,
            "pieces": pieces,
            "examples": self.examples,
            "frozen": self.frozen,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Task:
        """Read back."""
        pieces = data.get("pieces")
        template = None if pieces is None else Template(tuple(pieces))
        examples = data["examples"]
        if examples is not None:
            examples = tuple((str(role), str(text)) for role, text in examples)
        return cls(data["name"], data["source"], data["model"], template, examples, data["frozen"])


@dataclass(frozen=True, slots=True)
class Assignment:
    """The task of a call; ``changed`` says that a learned task's instruction is no longer the one learned from."""

    task: str
    changed: bool = False


@dataclass
class TaskIndex:
    """Assign each call to a task, and make tasks of calls that turn out to belong together.

    The first call with an unseen instruction waits in a small pool; the second one that is alike makes the task. Since
    clients choose names and instructions there are at most 1,000 tasks, and names of more than 200 characters are none.

    Parameters
    ----------
    tasks : dict of Task
        Known tasks by name.
    aliases : frozenset of str
        Model names that are names of tasks.
    pool_size : int
        Unmatched instructions remembered.

    Examples
    --------
    >>> index = TaskIndex()
    >>> system = {"role": "system", "content": "Name the intent of the message, in one word."}
    >>> call = {"model": "m", "messages": [system, {"role": "user", "content": "hi"}]}
    >>> index.assign(call, {}) is None
    True
    >>> index.assign(call, {}).task
    'name-the-intent-of-0119'
    """

    tasks: dict[str, Task] = field(default_factory=dict)
    aliases: frozenset[str] = frozenset()
    pool_size: int = 100
    _seen: OrderedDict[tuple[str, str, str], Assignment] = field(default_factory=OrderedDict, repr=False)
    _pool: OrderedDict[tuple[str, str, str], None] = field(default_factory=OrderedDict, repr=False)

    def assign(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Assignment | None:
        """The task of a call, or None while it is the only one of its kind.

        Parameters
        ----------
        body : mapping
            The body of a chat completion call.
        headers : mapping
            Its headers, names in lower case.
        """
        assigned = self._by_instruction(body, headers)
        return assigned if assigned is None else self._with_examples(assigned, body.get("messages"))

    def put(self, task: Task) -> None:
        """Add or replace a task, and forget what was concluded from the old one."""
        self.tasks[task.name] = task
        self._seen.clear()

    def _by_instruction(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Assignment | None:
        model = str(body.get("model") or "")
        named = headers.get(HEADER)
        if named and len(named) <= MOST_CHARACTERS:
            return self._known(Task(named, "header", model))
        if model in self.aliases:
            return self._known(Task(model, "alias", model))
        instruction = _instruction(body.get("messages"))
        if instruction is None:
            return None
        key = (model, *instruction)
        assigned = self._seen.get(key)
        if assigned is None:
            assigned = self._place(key)
            if assigned is not None:
                self._seen[key] = assigned
                if len(self._seen) > 4096:
                    self._seen.popitem(last=False)
        return assigned

    def _with_examples(self, assigned: Assignment, messages: Any) -> Assignment:
        """Keep the turns that every call of the task begins with; a learned task that loses some has changed."""
        task = self.tasks[assigned.task]
        turns = _turns(messages)[:-1]
        known = task.examples
        if known is None:
            self.tasks[task.name] = replace(task, examples=tuple(turns))
        elif tuple(turns[: len(known)]) != known:
            if task.frozen:
                return replace(assigned, changed=True)
            n = next(
                (i for i, (a, b) in enumerate(zip(known, turns, strict=False)) if a != b), min(len(known), len(turns))
            )
            self.tasks[task.name] = replace(task, examples=known[:n])
        return assigned

    def _known(self, task: Task) -> Assignment | None:
        if task.name not in self.tasks:
            if len(self.tasks) >= MOST_TASKS:
                return None
            self.tasks[task.name] = task
        return Assignment(task.name)

    def _place(self, key: tuple[str, str, str]) -> Assignment | None:
        model, source, text = key
        mine = [t for t in self.tasks.values() if t.source == source and t.model == model and t.template is not None]
        for task in mine:
            if task.template is not None and task.template.match(text) is not None:
                return Assignment(task.name)
        for task in mine:
            alike = Template.align(_flat(task), text)
            if alike is None:
                continue
            if task.frozen:
                return Assignment(task.name, changed=True)
            self.put(replace(task, template=alike))
            return Assignment(task.name)
        if len(self.tasks) >= MOST_TASKS:
            return None
        for other in list(self._pool):
            if other[:2] != (model, source):
                continue
            alike = Template((text,)) if other[2] == text else Template.align(other[2], text)
            if alike is None or alike.n_words < LEAST_WORDS:
                continue
            del self._pool[other]
            task = Task(_name(model, alike), "system" if source == "system" else "prompt", model, alike)
            self.put(task)
            return Assignment(task.name)
        self._pool[key] = None
        if len(self._pool) > self.pool_size:
            self._pool.popitem(last=False)
        return None


def _instruction(messages: Any) -> tuple[str, str] | None:
    """Where the instruction stands and its text, read without building a request."""
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return None
    first = messages[0].get("content")
    if messages[0].get("role") in ("system", "developer") and isinstance(first, str) and first.strip():
        return "system", first
    for message in messages:
        if isinstance(message, dict) and message.get("role") == "user" and isinstance(message.get("content"), str):
            return "prompt", message["content"]
    return None


def _turns(messages: Any) -> list[tuple[str, str]]:
    """The turns after the system prompt as role and text; parts that are not text count as empty."""
    if not isinstance(messages, list):
        return []
    plain = [m for m in messages if isinstance(m, dict) and m.get("role") not in ("system", "developer")]
    return [(str(m.get("role")), m["content"] if isinstance(m.get("content"), str) else "") for m in plain]


def _flat(task: Task) -> str:
    return "\x00".join(task.template.pieces) if task.template is not None else ""


def _name(model: str, template: Template) -> str:
    words = re.findall(r"[a-z0-9]+", " ".join(template.pieces).lower())[:4]
    digest = hashlib.sha256("\x00".join((model, *template.pieces)).encode()).hexdigest()[:4]
    return "-".join([*words, digest])
