"""Steps of a recipe: a scorer with a rule, named rules with their papers, and the fate of each document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pilotfish.curation.documents import Document
from pilotfish.curation.scan import Batch, Plan
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, IntArray, Rule, Scorer
from pilotfish.rules import Argmax, Between, TopK, WithinBudget

__all__ = ["Fate", "Filter", "OwnRule", "Rules", "Step", "TextRule", "Verdict", "apply"]

_GOPHER = "Rae 2021 (Gopher), arXiv:2112.11446, table A1 and appendix A.1.1"
_C4 = "Raffel 2020 (C4), arXiv:1910.10683, section 2.2"
_FINEWEB = "Penedo 2024 (FineWeb), arXiv:2406.17557, section 3.6"


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a step says of some documents.

    Parameters
    ----------
    kept : ndarray of bool, (n,)
        Whether each goes on.
    rules : sequence of str, (n,)
        The rule that dropped it; read only where it is dropped.
    scores : ndarray, (n,)
        The score that the rule looked at.
    texts : list of str or None
        Changed texts, where the step changes them.
    """

    kept: NDArray[np.bool_]
    rules: Sequence[str]
    scores: FloatArray
    texts: list[str] | None = None


class Step(Protocol):
    """One step of a recipe that looks at each document by itself."""

    name: str

    def plan(self, plan: Plan) -> None:
        """Say what the one pass over the text must yield."""
        ...

    def judge(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Verdict:
        """Judge the documents of the given rows of the batch, in their order."""
        ...


class Filter:
    """Score texts, then decide: any scorer of texts with any rule that judges each by itself.

    Parameters
    ----------
    name : str
        Name of the step.
    scorer : Scorer of str
        Anything that gives each text a number. One with methods ``plan`` and ``of`` (a batch) shares the one pass.
    rule : Rule
        Chooses the texts that stay, by a threshold or an interval.

    Raises
    ------
    InputError
        When the rule compares texts with each other.

    Examples
    --------
    >>> class Length:
    ...     def score(self, items):
    ...         return np.array([len(text) for text in items], dtype=float)
    >>> step = Filter("long_enough", Length(), Between(low=4))
    >>> step.judge(Batch(["abc", "abcd"]), np.arange(2), []).kept
    array([False,  True])
    """

    def __init__(self, name: str, scorer: Scorer[str], rule: Rule) -> None:
        if isinstance(rule, TopK | Argmax | WithinBudget):
            raise InputError(
                f"Filter {name!r} has the rule {type(rule).__name__}, which compares documents with each other and "
                "would choose from each batch: use a threshold or an interval."
            )
        self.name = name
        self.scorer = scorer
        self.rule = rule

    def plan(self, plan: Plan) -> None:
        """Say what the one pass over the text must yield."""
        if hasattr(self.scorer, "plan"):
            self.scorer.plan(plan)

    def judge(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Verdict:  # noqa: ARG002
        """Judge the documents of the given rows of the batch."""
        if hasattr(self.scorer, "of"):
            scores = self.scorer.of(batch)[rows]
        else:
            scores = self.scorer.score([batch.texts[i] for i in rows])
        kept = np.zeros(rows.size, dtype=bool)
        kept[self.rule.decide(scores).indices] = True
        return Verdict(kept, [self.name] * rows.size, scores)


@dataclass(frozen=True, slots=True)
class TextRule:
    """Keep a document while one measure of it, or the ratio of two, is from ``low`` to ``high``.

    Parameters
    ----------
    name : str
        Name of the rule.
    paper : str
        Where it comes from.
    over, under : str
        Names of measures; without ``under`` the measure itself is looked at.
    low, high : float
        The interval, both ends included.
    """

    name: str
    paper: str
    over: str
    under: str = ""
    low: float = -np.inf
    high: float = np.inf

    def of(self, batch: Batch) -> FloatArray:
        """The measure or ratio of every text of a batch, (n,); nothing over nothing is 0."""
        over = batch.column(self.over)
        if not self.under:
            return over
        under = batch.column(self.under)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(over == 0, 0.0, over / under))


@dataclass(frozen=True, slots=True)
class OwnRule:
    """Keep a document while a function of it gives a number from ``low`` to ``high``.

    Examples
    --------
    >>> shouting = OwnRule("shouting", lambda d: sum(c.isupper() for c in d.text) / max(len(d.text), 1), high=0.5)
    >>> [d.text for d, *_ in apply([Document("WHAT"), Document("what")], [Rules(shouting)])[1]]
    ['WHAT']
    """

    name: str
    function: Callable[[Document], float]
    low: float = -np.inf
    high: float = np.inf
    paper: str = "own"


class Rules:
    """Rules on a document's words, lines and repetitions, tried in order; the first that fails drops it.

    Parameters
    ----------
    rules : TextRule or OwnRule
        The rules.
    blocked : sequence of str
        Words that the measure ``blocked_words`` counts.

    Examples
    --------
    >>> kept, dropped = apply([Document("Too short.")], [Rules.gopher()])
    >>> dropped[0][1:]
    ('rules', 'gopher_short_doc', 2.0)
    """

    name = "rules"

    def __init__(self, *rules: TextRule | OwnRule, blocked: Sequence[str] = ()) -> None:
        self.rules = rules
        self.blocked = tuple(blocked)

    def __add__(self, other: Rules) -> Rules:
        return Rules(*self.rules, *other.rules, blocked=(*self.blocked, *other.blocked))

    def limits(self, **changed: Mapping[str, float]) -> Rules:
        """Change limits by rule name, such as ``gopher_short_doc={"low": 20}``.

        Raises
        ------
        InputError
            When there is no rule of that name, or a limit is neither low nor high.
        """
        known = {rule.name for rule in self.rules}
        for name, limit in changed.items():
            if name not in known or not set(limit) <= {"low", "high"}:
                raise InputError(
                    f"Limits are given for {name!r} as {dict(limit)}: name one of the rules, low and high."
                )
        made = [replace(rule, **dict[str, Any](changed.get(rule.name, {}))) for rule in self.rules]
        for rule in made:
            if not rule.low <= rule.high:
                raise InputError(f"Rule {rule.name} has low {rule.low} and high {rule.high}: give the smaller first.")
        return Rules(*made, blocked=self.blocked)

    def without(self, *names: str) -> Rules:
        """Leave rules out by name.

        Raises
        ------
        InputError
            When there is no rule of a name.
        """
        unknown = sorted(set(names) - {rule.name for rule in self.rules})
        if unknown:
            raise InputError(f"There is no rule {unknown[0]!r} to leave out: name one of the rules.")
        return Rules(*(rule for rule in self.rules if rule.name not in names), blocked=self.blocked)

    @classmethod
    def gopher(cls) -> Rules:
        """The quality and repetition rules of Gopher (Rae 2021, arXiv:2112.11446)."""
        return cls.gopher_quality() + cls.gopher_repetition()

    @classmethod
    def gopher_quality(cls) -> Rules:
        """Number and length of words, symbols, bullets, letters, stop words (Rae 2021, appendix A.1.1)."""
        return cls(
            TextRule("gopher_short_doc", _GOPHER, "plain_words", low=50),
            TextRule("gopher_long_doc", _GOPHER, "plain_words", high=100_000),
            TextRule("gopher_below_avg_threshold", _GOPHER, "plain_word_characters", "plain_words", low=3),
            TextRule("gopher_above_avg_threshold", _GOPHER, "plain_word_characters", "plain_words", high=10),
            TextRule("gopher_too_many_hashes", _GOPHER, "hashes", "words", high=0.1),
            TextRule("gopher_too_many_ellipsis", _GOPHER, "ellipses", "words", high=0.1),
            TextRule("gopher_too_many_bullets", _GOPHER, "bullet_lines", "lines", high=0.9),
            TextRule("gopher_too_many_end_ellipsis", _GOPHER, "ellipsis_lines", "lines", high=0.3),
            TextRule("gopher_below_alpha_threshold", _GOPHER, "alphabetic_words", "words", low=0.8),
            TextRule("gopher_enough_stop_words", _GOPHER, "stop_words", low=2),
        )

    @classmethod
    def gopher_repetition(cls) -> Rules:
        """Shares of repeated lines, paragraphs and n-grams (Rae 2021, table A1)."""
        again = (("5", 0.15), ("6", 0.14), ("7", 0.13), ("8", 0.12), ("9", 0.11), ("10", 0.10))
        return cls(
            TextRule("empty", _GOPHER, "characters", low=1),
            TextRule("dup_para_frac", _GOPHER, "repeated_paragraphs", "paragraphs", high=0.3),
            TextRule("dup_para_char_frac", _GOPHER, "repeated_paragraph_characters", "characters", high=0.2),
            TextRule("dup_line_frac", _GOPHER, "repeated_pieces", "pieces", high=0.3),
            TextRule("dup_line_char_frac", _GOPHER, "repeated_piece_characters", "characters", high=0.2),
            *(
                TextRule(f"top_{n}_gram", _GOPHER, f"top_{n}_grams", "characters", high=share)
                for n, share in (("2", 0.2), ("3", 0.18), ("4", 0.16))
            ),
            *(
                TextRule(f"duplicated_{n}_n_grams", _GOPHER, f"repeated_{n}_grams", "characters", high=share)
                for n, share in again
            ),
        )

    @classmethod
    def c4(cls) -> Rules:
        """Placeholder text, curly brackets, at least five sentences on lines worth keeping (Raffel 2020)."""
        return cls(
            TextRule("lorem_ipsum", _C4, "lorem_ipsum", high=0),
            TextRule("curly_bracket", _C4, "curly_brackets", high=0),
            TextRule("too_few_sentences", _C4, "sentences", low=5),
        )

    @classmethod
    def fineweb(cls) -> Rules:
        """Ends of lines, short lines, repeated lines, lists (Penedo 2024)."""
        return cls(
            TextRule("no_line", _FINEWEB, "filled_lines", low=1),
            TextRule("line_punct_ratio", _FINEWEB, "ended_lines", "filled_lines", low=0.12),
            TextRule("short_line_ratio", _FINEWEB, "short_lines", "filled_lines", high=0.67),
            TextRule("char_dup_ratio", _FINEWEB, "repeated_line_characters", "characters_in_lines", high=0.01),
            TextRule("list_ratio", _FINEWEB, "newlines", "words", high=0.3),
        )

    @classmethod
    def block_list(cls, words: Sequence[str], most: int = 0) -> Rules:
        """Drop documents with more than ``most`` of the given words, in small, capital or title letters."""
        return cls(TextRule("block_list", _C4, "blocked_words", high=most), blocked=words)

    def plan(self, plan: Plan) -> None:
        """Say what the one pass over the text must yield."""
        plan.measures |= any(isinstance(rule, TextRule) for rule in self.rules)
        plan.blocked |= set(self.blocked)

    def judge(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Verdict:
        """Judge the documents of the given rows of the batch."""
        kept = np.ones(rows.size, dtype=bool)
        names = [""] * rows.size
        scores = np.zeros(rows.size)
        for rule in self.rules:
            at = np.flatnonzero(kept)
            if isinstance(rule, TextRule):
                values = rule.of(batch)[rows[at]]
            else:
                values = np.array([rule.function(documents[int(i)]) for i in at], dtype=np.float64)
            good = np.zeros(at.size, dtype=bool)
            good[Between(rule.low, rule.high).decide(values).indices] = True
            for i, value in zip(at[~good], values[~good], strict=True):
                names[i], scores[i] = rule.name, value
            kept[at[~good]] = False
        return Verdict(kept, names, scores)


Fate = tuple[Document, str, str, float]


def apply(documents: Sequence[Document], steps: Sequence[Step]) -> tuple[list[Document], list[Fate]]:
    """Apply steps to documents: those that stay, and those dropped with step, rule and score.

    The text is read once for all steps, and once more after a step that changes it.
    """
    alive = list(documents)
    dropped: list[Fate] = []
    left = list(steps)
    while left and alive:
        batch, plan = Batch([d.text for d in alive]), Plan()
        for step in left:
            step.plan(plan)
        batch.scan(plan)
        rows = np.arange(len(alive))
        changed = False
        while left and not changed:
            step = left.pop(0)
            if not rows.size:
                continue
            verdict = step.judge(batch, rows, [alive[i] for i in rows])
            out = np.flatnonzero(~verdict.kept)
            dropped += [(alive[rows[i]], step.name, verdict.rules[i], float(verdict.scores[i])) for i in out.tolist()]
            if verdict.texts is not None:
                for i, text in zip(rows, verdict.texts, strict=True):
                    if text != alive[i].text:
                        alive[i], changed = alive[i]._replace(text=text), True
            rows = rows[verdict.kept]
        alive = [alive[i] for i in rows]
    return alive, dropped
