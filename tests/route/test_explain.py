"""Explanations say what a policy in service does, and what a decision still depends on."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.cascade import Cascade, Stage
from pilotfish.errors import InputError, ModelError
from pilotfish.models.fake import FakeModel
from pilotfish.route.compound import Blender
from pilotfish.route.deploy import Gate
from pilotfish.route.explain import explain
from pilotfish.route.router import Candidate, Router
from pilotfish.rules import Threshold
from pilotfish.scorers.preferences import PairRanker
from pilotfish.types import Request

ASKED = Request.of("add 3 and 9 now")
BROKEN = FakeModel(lambda _request: ModelError("It is not there."))


class Length:
    """Scores what it is given by its length; NaN where it is empty."""

    def score(self, items):
        texts = [item.prompt if isinstance(item, Request) else item.reply.text for item in items]
        return np.array([len(text) or np.nan for text in texts], dtype=float)


def test_a_router_says_what_it_expects_and_what_is_ruled_out(table, says):
    models = {name: says(name) for name in table.models}
    router = Router.fit(models, table, price=20.0, candidates=[Candidate("large", context=4)])
    told = explain(router, ASKED)
    assert told.chosen == "small"
    small, large = told.rows
    assert small.value == pytest.approx(small.score - 20.0 * small.cost)
    assert large.verdict == "cannot take this request"
    assert np.isnan(large.score)
    assert "score less 20 a dollar" in told.rule
    router.price = -3.5
    dear = explain(router, ASKED)
    assert "score plus 3.5 a dollar" in dear.rule
    assert " plus 3.5 x $" in dear.reason
    assert all(not model.asked for model in models.values())


@pytest.mark.parametrize(("at", "chosen"), [(15.0, "s"), (16.0, "l")])
def test_a_gate_shows_its_score_beside_its_threshold(says, at, chosen):
    told = explain(Gate(says("s"), says("l"), Length(), Threshold(at), "s", "l"), ASKED)
    assert (told.chosen, told.rows[0].score, told.rows[0].needs) == (chosen, 15.0, at)
    assert f"is at least {at:g}, else l" in told.rule
    assert np.isnan(explain(Gate(says("s"), says("l"), Length(), Threshold(1)), Request.of("")).rows[0].score)


def cascade(first, at=3.0):
    stages = [Stage(first, Length(), Threshold(at), "a"), Stage(FakeModel("four"), Length(), Threshold(5.0), "b")]
    return Cascade(stages, FakeModel("x"), "c")


@pytest.mark.parametrize(
    ("answer", "at", "chosen", "verdicts"),
    [
        ("yes", 3.0, "a", ["answers", "not asked", "not asked"]),
        ("no", 3.0, "c", ["passed on", "passed on", "answers"]),
        ("", 3.0, "c", ["passed on", "passed on", "answers"]),
        (None, 3.0, "", ["asked; its answer decides", "asked where a is passed on", "asked where a is passed on"]),
        (None, -np.inf, "a", ["answers", "not asked", "not asked"]),
        (None, np.inf, "c", ["asked, never enough", "passed on", "answers"]),
    ],
)
def test_a_cascade_is_walked_as_far_as_answers_are_known(answer, at, chosen, verdicts):
    told = explain(cascade(BROKEN if answer is None else FakeModel(answer), at), ASKED)
    assert told.chosen == chosen
    assert [row.verdict for row in told.rows] == verdicts
    assert ("depends on what a answers" in told.reason) == (chosen == "")


def test_a_blender_needs_every_answer(table, says):
    ranker = PairRanker().fit(["q"] * 4, [["= 1 sure", "= 2 perhaps"]] * 4, np.array([[1.0, 0.0]] * 4))
    models = [FakeModel("= 3 sure"), FakeModel("= 4 perhaps")]
    told = explain(Blender(models, ranker, names=("s", "l")), ASKED)
    assert told.chosen == "s"
    assert sum(row.score for row in told.rows) == pytest.approx(1.0)
    told = explain(Blender([models[0], BROKEN], ranker, names=("s", "l")), ASKED)
    assert (told.chosen, told.reason) == ("", "It depends on what l answers, which is not known here.")


def test_a_single_model_has_nothing_to_explain(says):
    with pytest.raises(InputError, match="chooses among no models"):
        explain(says("s"), ASKED)
