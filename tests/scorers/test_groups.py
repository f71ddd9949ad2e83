"""Groups of prompts: guessed from features, and a level of their own in a kernel regression."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression

from pilotfish.errors import InputError, NotFittedError
from pilotfish.scorers.groups import GroupGuess
from pilotfish.scorers.kernel import KernelQuality, _gauss
from pilotfish.scorers.prompts import PromptFeatures


def points(k, n=30, seed=0):
    rng = np.random.default_rng(seed)
    member = np.repeat(np.arange(k), n)
    return rng.normal(size=(k, 4))[member] * 2 + rng.normal(size=(k * n, 4)), [f"g{i}" for i in member]


@pytest.mark.parametrize("k", [2, 5])
def test_guesses_are_those_of_the_reference(k):
    x, groups = points(k)
    guess = GroupGuess().fit(x, groups)
    reference = LogisticRegression(C=10.0, tol=1e-8, max_iter=5000).fit(x, groups)
    np.testing.assert_allclose(guess.predict(x), reference.predict_proba(x), atol=0.02)
    assert guess.names_ == tuple(reference.classes_)
    again = GroupGuess.from_arrays(guess.to_arrays())
    np.testing.assert_array_equal(again.predict(x), guess.predict(x))


def test_small_groups_and_nameless_prompts_are_of_none():
    x, groups = points(4)
    groups[:30] = [""] * 30
    groups[30:56] = ["g2"] * 26  # leaves g1 with 4 prompts
    guess = GroupGuess().fit(x, groups)
    assert guess.names_ == ("g2", "g3")
    np.testing.assert_array_equal(guess.members(["", "g1", "g2", "g3"]), [[0, 0], [0, 0], [1, 0], [0, 1]])
    np.testing.assert_allclose(guess.predict(x).sum(axis=1), 1)
    for few in (["a"] * 120, [""] * 120):
        alone = GroupGuess().fit(x, few)
        assert alone.predict(x).shape == alone.members(few).shape == (120, 0)
    many = GroupGuess().fit(np.repeat(np.eye(210), 5, axis=0), [f"{i:03d}" for i in range(210) for _ in range(5)])
    assert len(many.names_) == 200
    with pytest.raises(NotFittedError):
        GroupGuess().predict(x)


class Vectors:
    """Stands for an embedder: each prompt is a number, near those of its own kind."""

    n_dimensions = 8

    def embed(self, texts):
        return np.array(
            [np.random.default_rng(int(t)).normal(size=8) + 3 * (int(t) % 3 == np.arange(8)) for t in texts]
        )


def asked(n=90):
    prompts = [str(i) for i in range(n)]
    groups = [f"kind {i % 3}" for i in range(n)]
    rng = np.random.default_rng(1)
    level = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])[np.arange(n) % 3]
    return prompts, level + 0.05 * rng.normal(size=(n, 2)), ["a", "b"], groups


def test_levels_are_learned_beside_the_kernel_and_count_by_the_guess():
    prompts, scores, models, groups = asked()
    scorer = KernelQuality(PromptFeatures(0, embedders=[Vectors()]), second_stage=False)
    scorer.fit(prompts, scores, models, groups)
    x, own = scorer.features_.transform(prompts), np.eye(3)[np.arange(90) % 3]
    new = scorer.features_.transform(["1000", "1001", "1002"])
    guess = softmax(new @ scorer.groups_.lines_[:-1] + scorer.groups_.lines_[-1], axis=1)
    train = _gauss(x, x, 1.0) + 0.3 * own @ own.T
    mean = scores.mean(axis=0)
    best = []
    for penalty in np.geomspace(0.3, 300, 16):
        line = KernelRidge(alpha=penalty, kernel="precomputed").fit(train, scores - mean)
        hat = train @ np.linalg.inv(train + penalty * np.eye(90))
        alone = (scores - mean - hat @ (scores - mean)) / (1 - np.diag(hat))[:, None]
        best.append(((alone**2).mean(), penalty, line))
    line = min(best, key=lambda row: row[0])[2]
    expected = mean + line.predict(_gauss(new, x, 1.0) + 0.3 * guess @ own.T)
    np.testing.assert_allclose(scorer.predict(["1000", "1001", "1002"]), expected, atol=2e-3)
    # 1000 is of kind 1, and so on.
    assert (scorer.predict(["1000", "1002"]).argmax(axis=1) == [1, 0]).all()


def test_prompts_of_which_no_model_was_asked_teach_the_groups_alone():
    prompts, scores, models, groups = asked()
    scores[12:] = np.nan
    scorer = KernelQuality(PromptFeatures(0, embedders=[Vectors()]), second_stage=False)
    few, all_named = (scorer.fit(prompts, scores, models, g).groups_ for g in (groups[:12] + [""] * 78, groups))
    assert few.names_ == ()  # four prompts each
    assert all_named.names_ == ("kind 0", "kind 1", "kind 2")
    assert len(scorer.landmarks_) == 12
    with pytest.raises(InputError, match="groups has 3 names for 90 prompts"):
        scorer.fit(prompts, scores, models, groups[:3])
