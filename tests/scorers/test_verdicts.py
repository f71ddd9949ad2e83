"""What judges say in their own words, and how likely it was where they said it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pilotfish.errors import ContextLengthError
from pilotfish.models.fake import FakeModel
from pilotfish.scorers.judges import GradeJudge, PairJudge
from pilotfish.types import Exchange, Reply, Request, TokenLogProb

PAIR = [Exchange(Request.of("2 + 2?"), Reply("4"))], [Exchange(Request.of("2 + 2?"), Reply("5"))]


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("A", 1), ("a.", 1), ("**B**", 0), ("[[A]]", 1), ("Answer: A", 1), ("Answer B", 0), ("Both", None),
        ("The better answer is B", 0), ("Option A.", 1),
        ("A is better", 1), ("A because it", 1), ("A, as it", 1), ("B gives more", 0), ("A\nIt", 1),
        ("A good answer would", None), ("A concise reply", None), ("A previous", None), ("A or B", None),
        ("A/B", None), ("As an AI", None), ("", None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_and_an_article_is_none(said, verdict):
    [found] = PairJudge(FakeModel(said), swap=False).compare(*PAIR)
    assert math.isnan(found) if verdict is None else found == verdict


@pytest.mark.parametrize(
    ("said", "grade"), [("Grade: 4", 4), ("**Score:** 5/5", 5), ("4 out of 5", 4), ("Rating 2.", 2), ("3 or 4", None)]
)
def test_a_grade_is_read_after_its_name(said, grade):
    [found] = GradeJudge(FakeModel(said)).score(PAIR[0])
    assert math.isnan(found) if grade is None else found == (grade - 1) / 4


@pytest.mark.parametrize("lead", [(), (" ",), ("Answer", ":"), ("**", "Answer", ":", " ")])
def test_probabilities_count_where_the_choice_was_made(lead):
    top = (("B", math.log(0.8)), ("A", math.log(0.2)))
    before = tuple(TokenLogProb(t, -0.1, ((t, -0.1), ("The", -3.0))) for t in lead)
    reply = Reply("".join(lead).strip() + " B", log_probs=(*before, TokenLogProb("B", top[0][1], top)))
    judge = PairJudge(FakeModel(lambda _: reply), swap=False)
    assert judge.compare(*PAIR) == pytest.approx([0.2])


def test_a_long_text_has_only_those_beside_it_asked_again(monkeypatch):
    monkeypatch.setattr("pilotfish.scorers.judges._AT_ONCE", 4)
    model = FakeModel(lambda r: ContextLengthError("too long") if len(r.prompt) > 2000 else "3")
    items = [*PAIR[0] * 9, Exchange(Request.of("q" * 9000), Reply("a"))]
    assert np.allclose(GradeJudge(model).score(items), 0.5)
    assert len(model.calls) < 20
