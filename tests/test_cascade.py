"""Cascades: laws, sums and failures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.cascade import Cascade, Stage
from pilotfish.errors import ContextLengthError, InputError, ModelError
from pilotfish.rules import Threshold
from pilotfish.types import Reply, Request, Usage


class Says:
    """Answers with its name; refuses prompts that hold ``refuse``."""

    def __init__(self, name, cost=1.0, refuse="\0"):
        self.name, self.cost, self.refuse, self.n_asked = name, cost, refuse, 0

    def generate(self, requests):
        if any(self.refuse in r.prompt for r in requests):
            raise ContextLengthError("The prompt is too long: shorten it.")
        self.n_asked += len(requests)
        return [Reply(f"{self.name}:{r.prompt}", self.name, Usage(2, 3, self.cost, 0.5)) for r in requests]


class ByLength:
    """Score = minus the length of the prompt."""

    def score(self, items):
        return np.array([-float(len(e.request.prompt)) for e in items])


class Constant:
    def __init__(self, value):
        self.value = value

    def score(self, items):
        return np.full(len(items), self.value)


prompts = st.lists(st.text(alphabet="abc", min_size=1, max_size=8), max_size=6)


@given(prompts)
def test_always_accept_equals_first_model(texts):
    requests = [Request.of(t) for t in texts]
    cascade = Cascade([Stage(Says("small"), Constant(0.0), Threshold(-math.inf))], last=Says("large"))
    assert [r.replace(reason="") for r in cascade.generate(requests)] == Says("small").generate(requests)


@given(prompts)
def test_never_accept_equals_last_model_but_for_what_was_tried(texts):
    requests = [Request.of(t) for t in texts]
    cascade = Cascade([Stage(Says("small", 0.25), Constant(0.0), Threshold(math.inf))], last=Says("large", 2.0))
    replies = cascade.generate(requests)
    assert [r.text for r in replies] == [r.text for r in Says("large").generate(requests)]
    assert all(r.usage == Usage(4, 6, 2.25, 1.0) for r in replies)


@given(prompts, st.floats(-9, 0))
def test_split_and_order(texts, at):
    small, large = Says("small"), Says("large")
    replies = Cascade([Stage(small, ByLength(), Threshold(at))], last=large).generate([Request.of(t) for t in texts])
    assert [r.text.split(":")[1] for r in replies] == texts
    assert [r.model for r in replies] == ["small" if -len(t) >= at else "large" for t in texts]
    assert large.n_asked == sum(-len(t) < at for t in texts)


def test_reason_says_which_stage_and_why():
    stages = [
        Stage(Says("a"), Constant(0.1), Threshold(0.5)),
        Stage(Says("b"), Constant(0.75), Threshold(0.5), "middle"),
    ]
    [reply] = Cascade(stages, last=Says("c")).generate([Request.of("x")])
    assert reply.reason == "stage 1 (a) scored 0.1: passed on; stage 2 (middle) scored 0.75: accepted"
    assert reply.usage.cost == 2.0


def test_a_cascade_is_a_model_and_nests():
    inner = Cascade([Stage(Says("a"), Constant(0.0), Threshold(0.5))], last=Says("b"))
    [reply] = Cascade([Stage(inner, Constant(1.0), Threshold(0.5))], last=Says("c")).generate([Request.of("x")])
    assert (reply.model, reply.usage.cost) == ("b", 2.0)
    assert "last model (b) answered" in reply.reason


def test_failing_stage_passes_on_only_what_failed():
    stage = Stage(Says("small", refuse="long"), Constant(1.0), Threshold(0.5))
    replies = Cascade([stage], last=Says("large")).generate([Request.of("ok"), Request.of("long")])
    assert [r.model for r in replies] == ["small", "large"]
    assert "failed (ContextLengthError)" in replies[1].reason


def test_failure_of_last_model_is_raised():
    with pytest.raises(ModelError):
        Cascade([], last=Says("large", refuse="x")).generate([Request.of("x")])


def test_no_score_is_never_accepted():
    stage = Stage(Says("small"), Constant(math.nan), Threshold(-math.inf))
    assert Cascade([stage], last=Says("large")).generate([Request.of("x")])[0].model == "large"


def test_wrong_number_of_scores_is_refused():
    class Two:
        def score(self, items):
            return np.zeros(2)

    with pytest.raises(InputError, match="for 1 answers"):
        Cascade([Stage(Says("small"), Two(), Threshold(0))], last=Says("large")).generate([Request.of("x")])


def test_empty_batch():
    assert Cascade([Stage(Says("s"), Constant(1.0), Threshold(0))], last=Says("l")).generate([]) == []


@pytest.mark.parametrize("how", ["before", "beside"])
def test_an_answer_is_not_scored_without_the_answers_it_is_compared_with(how):
    class Compared:
        def score(self, items):
            assert all(len(item.samples) == 1 for item in items)
            return np.ones(len(items))

    broken, sure = Says("broken", refuse="x"), Threshold(0.5)
    if how == "beside":
        stages = [Stage(Says("small"), Compared(), sure, beside=(broken,))]
    else:
        stages = [Stage(broken, Constant(0.0), sure), Stage(Says("small"), Compared(), sure, compares=True)]
    replies = Cascade(stages, last=Says("large")).generate([Request.of("x"), Request.of("y")])
    assert [reply.model for reply in replies] == ["large", "small"]


def test_an_answer_that_calls_tools_is_passed_on():
    class Calls(Says):
        def generate(self, requests):
            return [reply.replace(text="", extra={"tool_calls": [{"id": "1"}]}) for reply in super().generate(requests)]

    cascade = Cascade([Stage(Calls("small"), Constant(1.0), Threshold(-math.inf))], last=Calls("large"))
    [reply] = cascade.generate([Request.of("x")])
    assert (reply.model, reply.extra["tool_calls"]) == ("large", [{"id": "1"}])


def test_what_the_scorer_fails_on_is_passed_on():
    class Asks:
        def score(self, items):
            if any("hard" in item.request.prompt for item in items):
                raise ModelError("The verifier is gone.")
            return np.ones(len(items))

    cascade = Cascade([Stage(Says("small"), Asks(), Threshold(0.5))], last=Says("large"))
    replies = cascade.generate([Request.of("easy"), Request.of("hard")])
    assert [reply.model for reply in replies] == ["small", "large"]
