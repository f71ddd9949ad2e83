"""Several proposals checked side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

import numpy as np

from pilotfish.decoding.acceptance import Draft
from pilotfish.decoding.drafting import Context, Drafter, Proposer
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray

__all__ = ["Branches", "merged"]


class Branches:
    """What several drafters propose, as the branches of one tree that the target reads in one pass.

    A session that cannot read side by side, and a reply that is held to a form, check the first branch alone.

    Parameters
    ----------
    drafters : sequence of Drafter
        The likeliest to be right first: its branch is given twice as many tokens as each other.

    Examples
    --------
    >>> from pilotfish.decoding.copying import Lookup, Retrieval
    >>> len(Branches([Lookup(), Retrieval(["Thank you for your message."])]).drafters)
    2

    References
    ----------
    Token trees: SpecInfer, Miao et al., arXiv:2305.09781, section 3.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        if not drafters:
            raise InputError("Branches has no drafters: give at least one.")
        self.drafters = tuple(drafters)

    def begin(self, context: Context) -> Proposer:
        """Begin a reply.

        Raises
        ------
        InputError
            When a drafter does not fit the target.
        """
        return _BranchesProposer([drafter.begin(context) for drafter in self.drafters])


class _BranchesProposer:
    def __init__(self, proposers: Sequence[Proposer]) -> None:
        self._proposers = proposers

    def draft(self, prefix: Sequence[int], k: int) -> Draft:
        drafts = [proposer.draft(prefix, k) for proposer in self._proposers]
        return merged([draft for draft in drafts if draft.tokens], k)


def merged(drafts: Sequence[Draft], k: int, order: Iterable[tuple[int, int]] | None = None) -> Draft:
    """One tree of at most ``k`` tokens out of chains: tokens that were chosen, not drawn, are shared where they agree.

    The tokens are taken in an order of (branch, place), which is two of the first branch and one of each other in turn
    unless given.

    Examples
    --------
    >>> tree = merged([Draft([1, 2, 3]), Draft([1, 5])], 4)
    >>> list(tree.tokens), list(tree.parents)
    ([1, 2, 3, 5], [-1, 0, 1, 0])
    """
    if not drafts:
        return Draft()
    tokens: list[int] = []
    parents: list[int] = []
    origins: list[tuple[int, int]] = []
    known: dict[tuple[int, int], int] = {}
    ends = [-1] * len(drafts)
    for i, at in order or _in_turn([len(draft.tokens) for draft in drafts]):
        token, chosen = int(drafts[i].tokens[at]), drafts[i].probabilities is None
        same = known.get((ends[i], token)) if chosen else None
        if same is None:
            if len(tokens) == k:
                break
            same = len(tokens)
            tokens.append(token)
            parents.append(ends[i])
            origins.append((i, at))
            if chosen:
                known[ends[i], token] = same
        ends[i] = same
    is_chain = parents == list(range(-1, len(parents) - 1))
    first = drafts[0]
    return Draft(tokens, _drawn_from(drafts, origins), first.source, first.strength, None if is_chain else parents)


def _in_turn(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Two places of the first branch, then one of each other, and so on."""
    first = [[(0, at) for at in range(start, min(start + 2, lengths[0]))] for start in range(0, lengths[0], 2)]
    others = [[[(i, at)] for at in range(n)] for i, n in enumerate(lengths[1:], start=1)]
    for turn in zip_longest(first, *others, fillvalue=[]):
        for places in turn:
            yield from places


def _drawn_from(drafts: Sequence[Draft], origins: Sequence[tuple[int, int]]) -> FloatArray | None:
    drawn = [draft.probabilities for draft in drafts]
    width = next((rows.shape[1] for rows in drawn if rows is not None), 0)
    if not width:
        return None
    all_rows = np.zeros((len(origins), width))
    for row, (i, at) in zip(all_rows, origins, strict=True):
        if (rows := drawn[i]) is not None:
            row[:] = rows[at]
        else:  # chosen: as if drawn from a distribution that has nothing else
            row[drafts[i].tokens[at]] = 1.0
    return all_rows
