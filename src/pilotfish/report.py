"""The report page: what the traffic costs, what students answer, how sure that is, and what was decided and why."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import orjson

from pilotfish import page
from pilotfish.takeover.lessons import large_answer
from pilotfish.takeover.state import TaskState, folder_of
from pilotfish.traffic.calls import Call, Event
from pilotfish.traffic.log import TrafficLog
from pilotfish.traffic.tasks import normalise

__all__ = ["Summary", "report", "summarise"]

_PHASES = {"observing": "observing", "shadow": "shadow", "live": "live", "rolled_back": "rolled back"}
_N_BINS = 40


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals of one task over its logged calls.

    Parameters
    ----------
    n_calls, n_local : int
        All calls, and those a student answered.
    n_audited, n_audits_wrong : int
        Local answers put to the large model too, and those that disagreed.
    n_gold, n_right : int
        Calls whose right answer is known, and those answered right.
    cost, saved : float
        US dollars spent, audits included, and what the local answers would have cost, at the mean price of a call.
    local_by_bin, disagreed_by_bin : list of float
        Over equal runs of calls in order: share answered locally; share of compared predictions that disagreed.
    bins : list of float
        Number of the last call of each run.
    latency_local, latency_large : float
        Median seconds; NaN without calls.
    """

    n_calls: int
    n_local: int
    n_audited: int
    n_audits_wrong: int
    n_gold: int
    n_right: int
    cost: float
    saved: float
    bins: list[float]
    local_by_bin: list[float]
    disagreed_by_bin: list[float]
    latency_local: float
    latency_large: float
    seqs: list[int]

    @property
    def local_share(self) -> float:
        """Share of the calls a student answered."""
        return self.n_local / self.n_calls if self.n_calls else 0.0

    @property
    def priced(self) -> bool:
        """Whether anything says what the calls cost."""
        return self.cost > 0


def summarise(calls: Sequence[Call]) -> Summary:
    """Sum up the calls of one task, in order.

    Examples
    --------
    >>> summarise([Call.of("Where is my card?", "card_arrival", cost=0.01)]).cost
    0.01
    """
    large = [c for c in calls if not _is_local(c)]
    local = [c for c in calls if _is_local(c)]
    audits = [c for c in local if c.audit is not None]
    price = sum(c.cost for c in large) / len(large) if large else 0.0
    gold = [c for c in calls if c.gold is not None]
    size = max(1, -(-len(calls) // _N_BINS))
    runs = [calls[i : i + size] for i in range(0, len(calls), size)]
    return Summary(
        n_calls=len(calls),
        n_local=len(local),
        n_audited=len(audits),
        n_audits_wrong=sum(normalise(c.audit or "") != normalise(c.answer) for c in audits),
        n_gold=len(gold),
        n_right=sum(normalise(c.answer) == normalise(c.gold or "") for c in gold),
        cost=sum(c.cost for c in calls),
        saved=price * (len(local) - len(audits)),
        bins=[float(min((i + 1) * size, len(calls))) for i in range(len(runs))],
        local_by_bin=[sum(map(_is_local, run)) / len(run) for run in runs],
        disagreed_by_bin=[_disagreed(run) for run in runs],
        latency_local=_median([c.latency for c in local]),
        latency_large=_median([c.latency for c in large]),
        seqs=[run[-1].seq for run in runs],
    )


def _is_local(call: Call) -> bool:
    return call.answered_by.startswith("student:")


def _disagreed(calls: Sequence[Call]) -> float:
    compared = [(c.prediction, large_answer(c)) for c in calls if c.prediction is not None]
    wrong = [normalise(a or "") != normalise(b) for a, b in compared if b is not None]
    return sum(wrong) / len(wrong) if wrong else float("nan")


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else float("nan")


def report(log: TrafficLog, states: dict[str, TaskState], folder: Path) -> str:
    """Make the self-contained report page of all tasks.

    Parameters
    ----------
    log : TrafficLog
        Where the calls are.
    states : dict of TaskState
        The tasks by name.
    folder : Path
        Where students are kept.
    """
    events = log.events()
    # Without the prompts, which are most of a log, all calls of a task fit into memory.
    summaries = {name: summarise([c.replace(request=b"") for c in log.calls(task=name)]) for name in states}
    names = sorted(states, key=lambda name: -summaries[name].n_calls)
    other = sum(t.n_calls for t in log.totals() if t.task is None or t.task not in states)
    sections = [_overview(summaries, other)]
    if names:
        sections.append(_task_table(names, states, summaries))
    for name in names:
        mine = [event for event in events if event.task == name]
        sections.append(_task_section(name, states[name], summaries[name], mine, _learned(folder, states[name])))
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return page.page("Pilotfish report", f"{len(names)} task{'' if len(names) == 1 else 's'}, made {when}", *sections)


def _learned(folder: Path, state: TaskState) -> dict[str, Any] | None:
    version = state.version or (f"v{state.n_versions}" if state.n_versions else "")
    path = folder_of(folder, state.task.name) / version / "learned.json"
    if not version or not path.is_file():
        return None
    data: dict[str, Any] = orjson.loads(path.read_bytes())
    return data


def _overview(summaries: dict[str, Summary], n_other: int) -> str:
    n_calls = sum(s.n_calls for s in summaries.values())
    n_local = sum(s.n_local for s in summaries.values())
    n_audited = sum(s.n_audited for s in summaries.values())
    n_wrong = sum(s.n_audits_wrong for s in summaries.values())
    cost = sum(s.cost for s in summaries.values())
    saved = sum(s.saved for s in summaries.values())
    share = n_local / n_calls if n_calls else 0.0
    agreed = f"{1 - n_wrong / n_audited:.1%}" if n_audited else "none yet"
    if any(s.priced for s in summaries.values()):
        money = [
            ("spent", page.dollars(cost), "audits and all that routes asked included"),
            ("saved", page.dollars(saved), f"{_part(saved, saved + cost)} of the bill without Pilotfish"),
        ]
    else:
        money = [("spent", "not known", "no section [prices.NAME] says what calls cost")]
    return page.section(
        "All traffic",
        page.cards(
            [
                ("calls in tasks", f"{n_calls:,}", f"{n_other:,} other calls passed through"),
                ("answered locally", f"{share:.1%}", f"{n_local:,} calls"),
                ("audits that agreed", agreed, f"{n_audited:,} local answers audited"),
                *money,
            ]
        ),
    )


def _task_table(names: Sequence[str], states: dict[str, TaskState], summaries: dict[str, Summary]) -> str:
    rows = []
    for name in names:
        state, made = states[name], summaries[name]
        certificate = state.certificate
        rows.append(
            [
                name,
                _PHASES[state.phase],
                (state.kind or "unknown").replace("_", " "),
                f"{made.n_calls:,}",
                f"{made.local_share:.1%}",
                f"{certificate.coverage:.1%}" if certificate and certificate.ok else "none",
                f"{certificate.loss_upper:.2%}" if certificate and certificate.ok else "",
                page.dollars(made.cost) if made.priced else "",
                page.dollars(made.saved) if made.priced else "",
            ]
        )
    headers = ["task", "phase", "answers", "calls", "local", "certified coverage", "loss at most", "spent", "saved"]
    return page.section("Tasks", page.table(headers, rows, numeric=range(3, 9)))


def _task_section(
    name: str, state: TaskState, made: Summary, events: Sequence[Event], learned: dict[str, Any] | None
) -> str:
    parts = [f"<p class='lead'>{_PHASES[state.phase]}: {escape(state.reason)}</p>"]
    if made.n_calls:
        marks = [
            page.Mark(_call_number(made, event), _MARKS[event.kind])
            for event in _notable(events)
            if event.kind in _MARKS
        ]
        parts.append("<h3>Over time</h3>")
        parts.append(
            page.chart(
                [
                    page.Series("answered locally", made.bins, made.local_by_bin),
                    page.Series("compared predictions that disagreed", made.bins, made.disagreed_by_bin),
                ],
                x_label="calls of this task",
                y_label="share",
                percent_y=True,
                y_range=(0.0, 1.0),
                marks=marks,
            )
        )
    if learned is not None:
        parts.append(_proved(learned))
    if events:
        rows = [
            [time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(e.created)), e.kind.replace("_", " "), _said(e)]
            for e in list(events)[-25:]
        ]
        parts.append("<h3>Decisions</h3>" + page.table(["when (UTC)", "what", "why"], rows))
    return page.section(name, *parts)


_MARKS = {"promoted": "live", "rolled_back": "rolled back"}


def _notable(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.kind in _MARKS][-8:]


def _call_number(made: Summary, event: Event) -> float:
    at = event.detail.get("at", 0)
    for number, seq in zip(made.bins, made.seqs, strict=True):
        if seq >= at:
            return number
    return made.bins[-1]


def _said(event: Event) -> str:
    version = event.detail.get("version", "")
    reason = str(event.detail.get("reason", ""))
    return f"{version}: {reason}" if version else reason


def _proved(learned: dict[str, Any]) -> str:
    certificate, frontier = learned["certificate"], learned["frontier"]
    marks = []
    if certificate["threshold"] is not None:
        marks.append(page.Mark(certificate["coverage"], f"certified: {certificate['coverage']:.0%} local"))
    parts = [
        "<h3>Cost and quality, on held-out calls</h3>",
        page.chart(
            [
                page.Series("all replies", frontier["local"], frontier["agreement_all"]),
                page.Series("local answers", frontier["local"], frontier["agreement_local"]),
            ],
            x_label="share of calls answered locally",
            y_label="agreement with the large model",
            percent_x=True,
            percent_y=True,
            marks=marks,
        ),
        f"<p class='lead'>{escape(certificate['reason'])} Learned from {learned['n_fit']:,} calls in "
        f"{learned['seconds']:.1f} s, checked on {learned['n_calibrate']:,}.</p>",
    ]
    if certificate["groups"]:
        rows = [
            [g["group"], f"{g['n']:,}", f"{g['n_local']:,}", f"{g['n_wrong']:,}", f"{g['wrong_upper']:.1%}"]
            for g in sorted(certificate["groups"], key=lambda g: -g["n"])[:40]
        ]
        headers = ["group", "held-out calls", "local", "disagreed", "share at most"]
        parts.append("<h3>By group</h3>" + page.table(headers, rows, numeric=range(1, 5)))
    if learned["confusions"]:
        rows = [[large, small, f"{n}"] for large, small, n in learned["confusions"][:10]]
        parts.append(
            "<h3>Most frequent disagreements</h3>" + page.table(["large model", "student", "calls"], rows, numeric=[2])
        )
    return "".join(parts)


def _part(a: float, b: float) -> str:
    return f"{a / b:.1%}" if b else "0 %"
