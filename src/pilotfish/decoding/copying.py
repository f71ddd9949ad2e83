"""Drafters that copy: what followed the same tokens in this text, or in texts of before."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from pilotfish.decoding.acceptance import Draft
from pilotfish.decoding.branches import merged
from pilotfish.decoding.drafting import Context, Proposer
from pilotfish.decoding.suffixes import SuffixIndex
from pilotfish.protocols import WhiteBoxModel

__all__ = ["Lookup", "Retrieval"]

_STRONGEST = 15
_MOST_RECENT = 32


class Lookup:
    """Copies what followed the same tokens earlier in the prompt or the reply.

    Where the places of before went on differently, the likeliest ways are branches of one tree. A run that agrees with
    the last m tokens is taken to go on with probability m / (m + 2); by that the tokens of all branches are ordered.

    Parameters
    ----------
    n_max : int
        Longest run of tokens that is looked for; how much longer each agrees is seen then.
    n_branches : int
        Ways to go on at most.

    References
    ----------
    Prompt look-up decoding; Xia et al., A survey of speculative decoding, arXiv:2401.07851.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> target = NGramModel(4, "char").fit(["where is my card, and where is my money? "] * 3)
    >>> from pilotfish.decoding.decoder import Decoder
    >>> from pilotfish.types import Request
    >>> ask = Request.of("where is my card, and where is my c", temperature=0, max_tokens=12)
    >>> Decoder(target, [Lookup()], k=4).answer(ask)[1].n_accepted > 0
    True
    """

    def __init__(self, n_max: int = 4, n_branches: int = 3) -> None:
        self.n_max = n_max
        self.n_branches = n_branches

    def begin(self, context: Context) -> Proposer:  # noqa: ARG002 - needs nothing of it
        """Begin a reply."""
        return _LookupProposer(self.n_max, self.n_branches)


class _LookupProposer:
    def __init__(self, n_max: int, n_branches: int) -> None:
        self._n_max = n_max
        self._n_branches = n_branches
        self._ends: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self._n_seen = 0

    def draft(self, prefix: Sequence[int], k: int) -> Draft:
        for end in range(self._n_seen + 1, len(prefix)):
            for n in range(1, min(self._n_max, end) + 1):
                self._ends[tuple(prefix[end - n : end])].append(end)
        self._n_seen = max(self._n_seen, len(prefix) - 1)
        runs = self._runs(prefix)
        drafts = [Draft(list(prefix[end : end + k]), source="lookup", strength=n) for n, end in runs]
        return merged(drafts, k, _by_worth([(len(draft.tokens), draft.strength) for draft in drafts]))

    def _runs(self, prefix: Sequence[int]) -> list[tuple[int, int]]:
        """How many tokens agree, and where the next one stands, for each way to go on: the longest first."""
        found: dict[int, tuple[int, int]] = {}
        for n in range(min(self._n_max, len(prefix) - 1), 0, -1):
            ends = self._ends.get(tuple(prefix[-n:]), ())[: -_MOST_RECENT - 1 : -1]
            for run in sorted(((_agreeing(prefix, end, n), end) for end in ends), key=lambda run: -run[0]):
                found.setdefault(prefix[run[1]], run)
                if len(found) == self._n_branches:
                    return list(found.values())
        return list(found.values())


def _agreeing(prefix: Sequence[int], end: int, n: int) -> int:
    """How many tokens before a place are those the text ends with; at least ``n`` are."""
    while n < min(_STRONGEST, end) and prefix[end - n - 1] == prefix[-n - 1]:
        n += 1
    return n


def _by_worth(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Each branch and place of runs, given their length and how many tokens agree, the likeliest to stand first."""
    worth = {}
    for i, (length, agreeing) in enumerate(runs):
        # The other branches share half of what the first leaves: else it is something new that comes.
        at_all = 1.0 if i == 0 else 1 / (runs[0][1] + 2)
        for at in range(length):
            at_all *= (agreeing + at) / (agreeing + at + 2)
            worth[i, at] = at_all
    return sorted(worth, key=lambda place: -worth[place])


class Retrieval:
    """Copies what followed the same tokens in texts of before: a corpus, or the replies of a traffic log.

    Parameters
    ----------
    texts : iterable of str
        Texts; they are tokenized at the first reply, once for each vocabulary.
    n_max : int
        Longest run of tokens that is looked for.

    References
    ----------
    REST, He et al., arXiv:2311.08252.

    Examples
    --------
    >>> from pilotfish.models.ngram import NGramModel
    >>> target = NGramModel(4, "char").fit(["where is my card, and where is my money? "] * 3)
    >>> from pilotfish.decoding.decoder import Decoder
    >>> from pilotfish.types import Request
    >>> ask = Request.of("where is my c", temperature=0, max_tokens=12)
    >>> replies = ["where is my card, and where are my coins? "]
    >>> Decoder(target, [Retrieval(replies)], k=4).answer(ask)[1].n_accepted > 0
    True
    """

    def __init__(self, texts: Iterable[str], n_max: int = 8) -> None:
        self.texts = texts
        self.n_max = n_max
        self._made: WeakKeyDictionary[WhiteBoxModel, SuffixIndex] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def begin(self, context: Context) -> Proposer:
        """Begin a reply."""
        with self._lock:
            index = self._made.get(context.target)
            if index is None:
                tokenizer = context.target.tokenizer
                ends = sorted(tokenizer.end_tokens)[:1]
                index = SuffixIndex([tokenizer.encode(text) + ends for text in self.texts], self.n_max)
                self._made[context.target] = index
        return _RetrievalProposer(index)


class _RetrievalProposer:
    def __init__(self, index: SuffixIndex) -> None:
        self._index = index

    def draft(self, prefix: Sequence[int], k: int) -> Draft:
        n, tokens = self._index.find(prefix, k)
        return Draft(tokens, source="retrieval", strength=min(n, _STRONGEST))
