"""What every learned part of the evaluation keeps: what it learned is saved without pickle and says the same."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.errors import InputError, NotFittedError
from pilotfish.scorers.forecasting import ProxyLM
from pilotfish.scorers.judges import JudgePanel

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


LEARNED = {
    "panel": (JudgePanel(1.5).fit(VOTES, np.arange(20), VOTES[:20, 0]), lambda p: p.predict(VOTES)),
    "forecast": (
        forecast(trees=False),
        lambda p: np.concatenate(
            [p.predict([0.1]), p.predict([0.1], {"tâche 1": 0.9, "tâche 2": 0.4}, {"tâche 2": 9})]
        ),
    ),
    "forecast with trees": (forecast(trees=True), lambda p: p.predict([0.1], {"tâche 1": 0.9})),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_loaded_says_the_same(name, tmp_path):
    part, said = LEARNED[name]
    part.save(tmp_path / "part.npz")
    loaded = type(part).load(tmp_path / "part.npz")
    assert np.array_equal(said(loaded), said(part))
    settings = {key for key in vars(part) if not key.endswith("_")}
    assert settings
    assert all(getattr(loaded, key) == getattr(part, key) for key in settings)
    assert [p.name for p in tmp_path.iterdir()] == ["part.npz"]


@pytest.mark.parametrize("kind", [JudgePanel, ProxyLM])
def test_other_files_and_unfitted_parts_are_refused(kind, tmp_path):
    with pytest.raises(NotFittedError):
        kind().save(tmp_path / "part.npz")
    assert not list(tmp_path.iterdir())
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", other=np.arange(3))
    np.savez(tmp_path / "pickle.npz", **{k: np.array([{}], dtype=object) for k in ("weights", "penalty", "sizes")})
    for name in ("text", "other", "pickle"):
        with pytest.raises(InputError):
            kind.load(tmp_path / f"{name}.npz")


def test_a_panel_wants_a_column_for_each_judge():
    with pytest.raises(InputError, match="2 columns, but the panel 3 judges"):
        LEARNED["panel"][0].predict(VOTES[:, :2])
