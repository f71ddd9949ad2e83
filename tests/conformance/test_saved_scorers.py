"""What every learned part of the evaluation keeps: what it learned is saved without pickle and says the same."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.errors import InputError, NotFittedError
from pilotfish.scorers.calibration import (
    GroupCalibration,
    IsotonicCalibration,
    PlattCalibration,
    TemperatureCalibration,
)
from pilotfish.scorers.combination import Combination
from pilotfish.scorers.forecasting import ProxyLM
from pilotfish.scorers.grounding import Grounding
from pilotfish.scorers.judges import JudgePanel
from pilotfish.scorers.reference import Length
from pilotfish.types import Exchange, Reply, Request


class Told:
    """The number that the reference is."""

    def score(self, items):
        return np.array([float(e.references[0]) if e.references else np.nan for e in items])


RNG = np.random.default_rng(0)
VOTES = RNG.integers(0, 2, (40, 3)).astype(float)


def forecast(trees: bool) -> ProxyLM:
    n_models, n_tasks = 8, 9
    levels, cards = RNG.uniform(0.3, 0.6, n_tasks), np.linspace(-0.2, 0.2, n_models)
    scores = np.clip(levels + cards[:, None] + RNG.normal(0, 0.01, (n_models, n_tasks)), 0, 1)
    models, tasks = [f"m{i}" for i in range(n_models)], [f"tâche {j}" for j in range(n_tasks)]
    about = {m: [float(c)] if trees else [0.0] for m, c in zip(models, cards, strict=True)}
    made = ProxyLM(seed=3).fit(scores, models, tasks, RNG.random((n_tasks, 2)), models[:2], about)
    assert (made.trees_ is not None) == trees
    return made


SURE = RNG.random(400)
TOPICS = RNG.integers(0, 3, (400, 2)).astype(float)
RIGHT = (RNG.random(400) < np.where(TOPICS[:, 0] == 1, 0.9 * SURE, 0.4 + 0.5 * SURE)).astype(float)
CONTEXT = ("The Porto bridge was built in 1886 and has one arch.",)
ANSWERS = [
    Exchange(Request.of("When?"), Reply(f"The bridge was built in {year}."), context=CONTEXT)
    for year in (1886, 1930, 1886, 1999)
]

LEARNED = {
    "isotonic": (IsotonicCalibration().fit(SURE, RIGHT), lambda p: p.predict(SURE)),
    "platt": (PlattCalibration().fit(SURE, RIGHT), lambda p: p.predict(SURE)),
    "temperature": (TemperatureCalibration().fit(SURE, RIGHT), lambda p: p.predict(SURE)),
    "groups": (GroupCalibration(5, shrinkage=3.0).fit(SURE, RIGHT, TOPICS), lambda p: p.predict(SURE, TOPICS)),
    "grounding": (Grounding().fit(ANSWERS, np.array([1.0, 0, 1, 0])), lambda p: p.score(ANSWERS)),
    "panel": (JudgePanel(1.5).fit(VOTES, np.arange(20), VOTES[:20, 0]), lambda p: p.predict(VOTES)),
    "forecast": (
        forecast(trees=False),
        lambda p: np.concatenate(
            [p.predict([0.1]), p.predict([0.1], {"tâche 1": 0.9, "tâche 2": 0.4}, {"tâche 2": 9})]
        ),
    ),
    "forecast with trees": (forecast(trees=True), lambda p: p.predict([0.1], {"tâche 1": 0.9})),
}


def test_a_combination_learns_what_people_prefer_and_is_saved_without_its_metrics(tmp_path):
    right = RNG.random(60)
    better, worse = (
        [
            Exchange(Request.of("?"), Reply("x" * n), (str(r + s),))
            for n, r in zip(RNG.integers(1, 9, 60), right, strict=True)
        ]
        for s in (0.1, 0.0)
    )
    metrics = {"noise": Length(), "told": Told()}
    made = Combination(metrics, penalty=0.1).fit(better, worse)
    assert made.weights_[1] > 5 * abs(made.weights_[0])
    assert (made.score(better) > made.score(worse)).all()
    made.save(tmp_path / "line.npz")
    again = Combination.load(tmp_path / "line.npz", dict(reversed(metrics.items())))
    assert again.penalty == 0.1
    assert np.array_equal(again.score(better), made.score(better))
    unknown = Exchange(Request.of("?"), Reply("x"))
    assert np.isnan(made.score([unknown])).all()
    assert np.array_equal(Combination(metrics, 0.1).fit([*better, unknown], [*worse, unknown]).weights_, made.weights_)
    for wrong in ((better[:3], worse[:3]), (better, worse[:3]), ([unknown] * 20, worse[:20])):
        with pytest.raises(InputError):
            Combination(metrics).fit(*wrong)
    with pytest.raises(InputError, match="weighs 'told'"):
        Combination.load(tmp_path / "line.npz", {"noise": Length()})
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match="no saved Combination"):
        Combination.load(tmp_path / "text.npz", metrics)
    with pytest.raises(NotFittedError):
        Combination(metrics).score(better)


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_loaded_says_the_same(name, tmp_path):
    part, said = LEARNED[name]
    part.save(tmp_path / "part.npz")
    loaded = type(part).load(tmp_path / "part.npz")
    assert np.array_equal(said(loaded), said(part))
    settings = {key for key in vars(part) if not key.endswith("_")}
    assert all(getattr(loaded, key) == getattr(part, key) for key in settings)
    assert [p.name for p in tmp_path.iterdir()] == ["part.npz"]


@pytest.mark.parametrize("kind", dict.fromkeys(type(part) for part, _ in LEARNED.values()))
def test_other_files_and_unfitted_parts_are_refused(kind, tmp_path):
    with pytest.raises(NotFittedError):
        kind().save(tmp_path / "part.npz")
    assert not list(tmp_path.iterdir())
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", other=np.arange(3))
    names = ("weights", "penalty", "sizes", "mean", "settings", "at_", "slope_", "temperature_")
    np.savez(tmp_path / "pickle.npz", **{k: np.array([{}], dtype=object) for k in names})
    for name in ("text", "other", "pickle"):
        with pytest.raises(InputError):
            kind.load(tmp_path / f"{name}.npz")


def test_a_panel_wants_a_column_for_each_judge():
    with pytest.raises(InputError, match="2 columns, but the panel 3 judges"):
        LEARNED["panel"][0].predict(VOTES[:, :2])
