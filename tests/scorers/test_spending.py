"""What scorers ask themselves is part of what an answer takes."""

from __future__ import annotations

import pytest

from pilotfish.cascade import Cascade, Stage
from pilotfish.errors import ModelError
from pilotfish.models.fake import FakeModel
from pilotfish.route.deploy import Gate
from pilotfish.route.router import Router
from pilotfish.rules import Threshold
from pilotfish.scorers.agreement import Agreement
from pilotfish.scorers.judges import GradeJudge
from pilotfish.scorers.spending import ask_aside, counted
from pilotfish.scorers.tags import ModelTagger, TagQuality
from pilotfish.scorers.verification import ChainOfVerification, InternalConfidence, OptionSetSize, SelfVerification
from pilotfish.traffic.table import ReplyTable
from pilotfish.types import Reply, Request, TokenLogProb, Usage

TWO = [Request.of("is it one"), Request.of("is it two")]


class Costs:
    """Says a word for a dollar a call."""

    def __init__(self, text="Yes", cost=1.0):
        self.text, self.cost = text, cost

    def generate(self, requests):
        first = TokenLogProb(self.text, -0.1, ((self.text, -0.1), ("No", -3.0)))
        return [Reply(self.text, "m", Usage(10, 1, self.cost, 0.1), log_probs=(first,)) for _ in requests]


class Away:
    def generate(self, requests):
        raise ModelError("The model is away: try later.")


@pytest.mark.parametrize(
    ("scorer", "n_calls"),
    [
        (SelfVerification(Costs(), 3), 3),
        (ChainOfVerification(Costs("One?\nTwo?"), 2), 4),
        (Agreement(Costs(), 2), 2),
        (GradeJudge(Costs("5")), 1),
    ],
)
def test_a_cascade_counts_what_its_scorer_asks(scorer, n_calls):
    cascade = Cascade([Stage(Costs(cost=0.25), scorer, Threshold(2.0))], last=Costs(cost=4.0))
    for reply in cascade.generate(TWO):
        assert reply.usage.cost == pytest.approx(0.25 + n_calls + 4.0)
        assert reply.usage.prompt_tokens == 10 * (n_calls + 2)


@pytest.mark.parametrize(("at", "answer"), [(0.5, 0.25), (2.0, 4.0)])
def test_a_gate_counts_what_it_asks_before_the_answer(at, answer):
    gate = Gate(Costs(cost=0.25), Costs(cost=4.0), InternalConfidence(Costs()), Threshold(at))
    assert [reply.usage.cost for reply in gate.generate(TWO)] == [1.0 + answer] * 2
    sets = OptionSetSize(Costs(), ["Yes", "No"], 0.5)
    sets.fit(TWO, [0, 0])
    [reply] = Gate(Costs(cost=0.25), Costs(cost=4.0), sets, Threshold(9.0)).generate(TWO[:1])
    assert reply.usage.cost == 5.0


def test_a_router_counts_what_its_tagger_asks_once():
    table = ReplyTable.of(["is it a", "is it b"], {"s": [0, 1], "l": [1, 1]}, {"s": 1.0, "l": 2.0})
    router = Router.fit({"s": Costs(cost=0.25), "l": Costs(cost=0.25)}, table, TagQuality(ModelTagger(Costs())))
    assert [[r.usage.cost for r in router.generate(TWO[:1])] for _ in range(2)] == [[1.25], [0.25]]


def test_what_was_spent_before_a_failure_is_told():
    verified = SelfVerification(Costs(), 2)
    with pytest.raises(ModelError) as failed:
        Cascade([Stage(Costs(cost=0.25), verified, Threshold(2.0))], last=Away()).generate(TWO)
    assert failed.value.cost == 4.5
    with pytest.raises(ModelError) as failed:
        Gate(Costs(), Away(), InternalConfidence(Costs()), Threshold(2.0)).generate(TWO)
    assert failed.value.cost == 2.0
    assert ModelError.cost == 0.0


def test_counts_nest_and_end():
    inner = Cascade([Stage(Costs(), SelfVerification(Costs(), 1), Threshold(2.0))], last=Costs())
    with counted() as usages:
        ask_aside(inner, TWO[:1])
    ask_aside(FakeModel(), TWO)
    assert [usage.cost for usage in usages] == [3.0]
