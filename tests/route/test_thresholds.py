"""Thresholds of several stages: those found are the best of all, and many models are no more than many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pilotfish.methods.cascades import calibrated_cascade, frugal_gpt, frugal_ml, idk_cascade
from pilotfish.route.policies import CascadePolicy
from pilotfish.route.thresholds import Stages, frontier
from pilotfish.scorers.answers import AnswerQuality, CalibratedConfidence
from pilotfish.traffic.table import ReplyTable


class Hashed:
    """Scores by the query alone, one in seven without."""

    n_calls = 1

    def __init__(self, seed):
        self.seed = seed

    def score(self, items):
        draws = [np.random.default_rng([self.seed, *e.request.prompt.encode()]).random() for e in items]
        return np.array([np.nan if x < 0.15 else x for x in draws])


def make(n_models, n=80):
    rng = np.random.default_rng(0)
    names = [f"m{j}" for j in range(n_models)]
    scores = {name: rng.random(n) < 0.5 + 0.4 * j / n_models for j, name in enumerate(names)}
    said = {name: ["= 1 sure" if right else "perhaps" for right in column] for name, column in scores.items()}
    costs = {name: rng.random(n) * (j + 1) for j, name in enumerate(names)}
    return ReplyTable.of([f"query {i}" for i in range(n)], scores, costs, replies=said)


@pytest.mark.parametrize("n_models", [3, 4])
def test_no_combination_of_thresholds_beats_what_is_found(n_models):
    table = make(n_models)
    policy = CascadePolicy("c", table.models, tuple(map(Hashed, range(n_models - 1))))
    found = [policy.run(table, setting) for setting in policy.settings(table)]
    best = [(c.costs(table).mean(), c.qualities(table).mean()) for c in found]
    assert [cost for cost, _ in best] == sorted(cost for cost, _ in best)
    grids = [[-np.inf, *np.nanquantile(column, (0, 0.3, 0.7, 1)), np.inf] for column in policy.stage_scores(table).T]
    stages = Stages(
        policy.stage_scores(table),
        table.scores,
        table.costs[:, :-1] + table.costs[:, :-1].mean(axis=0),
        table.costs[:, :-1],
        table.costs[:, -1],
    )
    kept = frontier(stages, [grid[1:-1] for grid in grids], most=1000)
    ours = [(c.costs(table).mean(), c.qualities(table).mean()) for c in (policy.run(table, each) for each in kept)]
    for setting in itertools.product(*grids):
        choice = policy.run(table, setting)
        cost, quality = choice.costs(table).mean(), choice.qualities(table).mean()
        assert any(c <= cost + 1e-12 and q >= quality - 1e-12 for c, q in ours)


def test_many_models_make_a_cascade_that_gains_by_each():
    table = make(12, 300)
    policy = calibrated_cascade(table.models).fit(table)
    settings = policy.settings(table)
    assert 5 < len(settings) <= policy.n_settings
    runs = [policy.run(table, setting) for setting in settings]
    costs, qualities = [c.costs(table).mean() for c in runs], [c.qualities(table).mean() for c in runs]
    assert costs == sorted(costs)
    assert qualities == sorted(qualities)
    assert qualities[-1] > table.scores.mean(axis=0).max() + 0.05
    assert costs[0] < 1.1 * table.costs.mean(axis=0).min()


@pytest.mark.parametrize("make_policy", [frugal_gpt, frugal_ml])
def test_answers_of_a_model_are_learned_from_once_for_all_orders(make_policy, monkeypatch):
    table, fitted, scored = make(4), [], []
    fit, score = AnswerQuality.fit, AnswerQuality.score
    monkeypatch.setattr(AnswerQuality, "fit", lambda self, *a: (fitted.append(self), fit(self, *a))[1])
    monkeypatch.setattr(AnswerQuality, "score", lambda self, *a: (scored.append(self), score(self, *a))[1])
    policy = make_policy(table.models).fit(table)
    policy.settings(table)
    assert len(fitted) == len(scored) == 4
    policy.fit(table.subset(range(60))).settings(table)
    assert len(fitted) == len(scored) == 8


def test_a_scorer_that_is_given_learns_each_stage_apart():
    table = make(3)
    default = calibrated_cascade(table.models).fit(table).stage_scores(table)
    given = AnswerQuality()
    assert np.array_equal(calibrated_cascade(table.models, given).fit(table).stage_scores(table), default)
    assert not hasattr(given, "weights_")
    nested = idk_cascade(table.models, CalibratedConfidence(AnswerQuality())).fit(table)
    assert nested.scorers[0].scorer.scorer is not nested.scorers[1].scorer.scorer
    live = Hashed(0)
    assert calibrated_cascade(table.models, live).scorers == (live, live)
