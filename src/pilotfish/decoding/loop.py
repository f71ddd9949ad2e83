"""The one token loop: plain, speculative, fused and constrained decoding are its settings."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np

from pilotfish.decoding.acceptance import Acceptance, Draft
from pilotfish.decoding.controller import Costs, FixedLength, SpeedController
from pilotfish.decoding.drafting import Proposer
from pilotfish.protocols import Logits, Session, TreeSession

__all__ = ["Constraint", "Stats", "Step", "decode"]


class Constraint(Protocol):
    """What may be written next."""

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of some further tokens may be written."""
        ...

    def forced(self) -> list[int]:
        """Tokens that must come next, where there is no choice."""
        ...

    def restrict(self, logits: Logits, draft: Sequence[int]) -> Logits:
        """The logits at each place of a draft and after it, with what may not come there ruled out."""
        ...

    def write(self, tokens: Sequence[int]) -> bool:
        """Note what was written; false when nothing more may come."""
        ...


@dataclass(slots=True)
class Stats:
    """What a reply took.

    Parameters
    ----------
    n_tokens, n_passes, n_drafted, n_accepted : int
        Tokens written, passes of the target, drafted and accepted tokens.
    seconds, draft_seconds : float
        Wall time of the passes with the choice of tokens, and of drafting.
    sources : dict of str to list of int
        Drafted and accepted tokens by source.
    """

    n_tokens: int = 0
    n_passes: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    seconds: float = 0.0
    draft_seconds: float = 0.0
    sources: dict[str, list[int]] = field(default_factory=dict)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens written in a pass of the target."""
        return self.n_tokens / max(1, self.n_passes)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The tokens of one pass, the target's logits after the text and each drafted token, and the row of each token."""

    tokens: list[int]
    logits: Logits
    rows: list[int]


def decode(
    session: Session,
    prompt: Sequence[int],
    acceptance: Acceptance,
    *,
    proposers: Sequence[tuple[str, Proposer]] = (),
    controller: SpeedController | FixedLength | None = None,
    constraint: Constraint | None = None,
    rng: np.random.Generator | None = None,
    room: int = 2**31,
    costs: Costs | None = None,
    stats: Stats | None = None,
) -> Generator[Step]:
    """Write tokens until the caller has enough.

    Parameters
    ----------
    session : Session
        Where the text goes on.
    prompt : sequence of int
        Read before the first token; at least one.
    acceptance : Acceptance
        Chooses the tokens.
    proposers : sequence of (str, Proposer)
        Asked in order, each under its name; the first that proposes anything worth checking is taken.
    controller : SpeedController or FixedLength, optional
        Says how much to draft.
    constraint : Constraint, optional
        What may be written.
    rng : numpy.random.Generator, optional
        Draws the tokens.
    room : int
        Tokens that may be written at most; drafts do not go past it.
    costs : Costs, optional
        Told what the passes took.
    stats : Stats, optional
        Counted in.

    Yields
    ------
    Step
        At least one token each.

    Examples
    --------
    >>> from itertools import islice
    >>> from pilotfish.decoding.acceptance import Greedy
    >>> from pilotfish.models.sessions import FunctionSession
    >>> count = FunctionSession(lambda tokens: np.log(np.eye(5, dtype=np.float32)[(tokens[-1] + 1) % 5] + 1e-9))
    >>> [step.tokens for step in islice(decode(count, [0], Greedy()), 3)]
    [[1], [2], [3]]
    """
    rng = rng or np.random.default_rng()
    controller = controller or FixedLength(0)
    stats = stats if stats is not None else Stats()
    text, unread, room = list(prompt), list(prompt), max(0, room)
    # A form is kept token by token, and not every session can read side by side: there the first branch is the draft.
    trees = constraint is None and isinstance(session, TreeSession) and session.takes_trees
    while room > 0:
        draft = _draft(text, room - 1, proposers, controller, constraint, trees, costs, stats)
        k = len(draft.tokens)
        start = time.perf_counter()
        n_read = len(unread) + k
        if draft.parents is not None:
            logits = cast(TreeSession, session).extend_tree(unread, draft.tokens, draft.parents)
        else:
            logits = session.extend([*unread, *draft.tokens] if k else unread, k + 1)
        if constraint is not None:
            logits = constraint.restrict(logits, draft.tokens)
        path, token = acceptance.accept(logits, draft, rng)
        n = len(path)
        if draft.parents is not None:
            cast(TreeSession, session).keep(k, path)
        elif k > n:
            session.rewind(k - n)
        taken = time.perf_counter() - start
        written = [*(draft.tokens[i] for i in path), token]
        if costs is not None and n_read <= 64:
            costs.add_pass(n_read, taken)
        if k:
            controller.observe(draft.source, draft.strength, k, n)
            counts = stats.sources.setdefault(draft.source, [0, 0])
            counts[0] += k
            counts[1] += n
        controller.wrote(n + 1)
        stats.n_passes += 1
        stats.n_tokens += n + 1
        stats.n_drafted += k
        stats.n_accepted += n
        stats.seconds += taken
        text += written
        unread = [token]
        room -= n + 1
        goes_on = constraint is None or constraint.write(written)
        yield Step(written, logits, [0, *(i + 1 for i in path)])
        if not goes_on:
            return


def _draft(
    text: Sequence[int],
    room: int,
    proposers: Sequence[tuple[str, Proposer]],
    controller: SpeedController | FixedLength,
    constraint: Constraint | None,
    trees: bool,
    costs: Costs | None,
    stats: Stats,
) -> Draft:
    if constraint is not None and room > 0 and (forced := constraint.forced()):
        return Draft(forced[:room], source="constraint", strength=15)
    for name, proposer in proposers:
        k = min(controller.length(name), room)
        if k < 1:
            continue
        start = time.perf_counter()
        draft = proposer.draft(text, k)
        taken = time.perf_counter() - start
        stats.draft_seconds += taken
        if not draft.tokens:
            continue
        if costs is not None:
            costs.add_draft(name, len(draft.tokens), taken)
        draft = draft if trees else draft.chain()
        n = controller.length(name, draft.strength, draft.depths())
        if constraint is not None and n:
            n = min(n, constraint.allowed(draft.tokens[:n]))
        if n:
            cut = draft.probabilities[:n] if draft.probabilities is not None else None
            parents = draft.parents[:n] if draft.parents is not None else None
            return Draft(draft.tokens[:n], cut, name, draft.strength, parents)
    return Draft()
