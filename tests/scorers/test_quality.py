"""Quality scorers: conformance of every one, formulas against independent values."""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

from pilotfish.errors import InputError, NotFittedError
from pilotfish.scorers.kernel import KernelQuality, _gauss, _ridge
from pilotfish.scorers.preferences import (
    MatrixFactorisation,
    PairRanker,
    SimilarityElo,
    battles,
    bradley_terry,
    factor_loss,
)
from pilotfish.scorers.prompts import PromptFeatures, _readers, form_of
from pilotfish.scorers.quality import (
    Column,
    Gap,
    MeanQuality,
    NeighbourQuality,
    TermQuality,
)
from pilotfish.scorers.tags import KeywordTagger, ModelTagger, TagQuality
from pilotfish.types import Reply

MAKERS = [
    lambda: KernelQuality(),
    lambda: KernelQuality(second_stage=False),
    lambda: TermQuality(1.0),
    lambda: MeanQuality([TermQuality(1.0), NeighbourQuality(k=5)]),
    lambda: NeighbourQuality(k=5),
    lambda: NeighbourQuality(k=5, by_similarity=True),
    lambda: SimilarityElo(),
    lambda: MatrixFactorisation(n_steps=150),
    lambda: TagQuality(KeywordTagger(least=3, most=0.9).fit(data()[0])),
]


def data(n=60, seed=0):
    rng = np.random.default_rng(seed)
    sums = rng.integers(0, 2, n)
    prompts = [f"add {i} and {i + 3} now" if s else f"who wrote the old book {i}" for i, s in enumerate(sums)]
    small = np.where(sums, rng.random(n) < 0.1, rng.random(n) < 0.95)
    large = rng.random(n) < 0.9
    return prompts, np.column_stack([small, large]).astype(float), ["small", "large"]


@pytest.mark.parametrize("make", MAKERS)
def test_every_quality_scorer_keeps_the_contract(make):
    prompts, scores, models = data()
    scorer = make()
    with pytest.raises(NotFittedError):
        scorer.predict(["x"])
    assert scorer.fit(prompts, scores, models) is scorer
    assert scorer.models_ == ("small", "large")
    sums, books = scorer.predict(["add 7 and 10 now", "who wrote the old book 99"])
    assert sums.shape == (2,)
    assert np.isfinite(scorer.predict(prompts)).all()
    assert sums[1] - sums[0] > books[1] - books[0]
    np.testing.assert_allclose(make().fit(prompts, scores, models).predict(prompts[:5]), scorer.predict(prompts[:5]))
    assert Column(scorer, "large").score(prompts[:3]).shape == (3,)
    # One prompt and two are multiplied in another order.
    np.testing.assert_allclose(
        Gap(scorer, "small", "large").score(["add 7 and 10 now"]), [sums[0] - sums[1]], rtol=1e-5
    )


@pytest.mark.parametrize("make", MAKERS)
def test_missing_scores_are_left_out_and_bad_ones_refused(make):
    prompts, scores, models = data()
    holes = scores.copy()
    holes[::3, 0] = np.nan
    assert np.isfinite(make().fit(prompts, holes, models).predict(prompts)).all()
    with pytest.raises(InputError, match="give one per pair"):
        make().fit(prompts, scores[:5], models)
    with pytest.raises(InputError, match="infinity"):
        make().fit(prompts, np.where(np.arange(60)[:, None] == 3, np.inf, scores), models)
    holes[:, 1] = np.nan
    with pytest.raises(InputError, match="'large' has 0 scores"):
        make().fit(prompts, holes, models)


def test_predictions_do_not_depend_on_scores_of_other_tables():
    prompts, scores, models = data()
    scorer = KernelQuality().fit(prompts, scores, models)
    before = scorer.predict(prompts)
    scores[:] = 0
    np.testing.assert_array_equal(before, scorer.predict(prompts))


def test_ridge_equals_the_reference_and_its_leave_one_out_is_exact():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 1))
    landmarks = x.astype(np.float32)
    kernel = _gauss(x, landmarks, 0.5)
    weights, held_out = _ridge(kernel, _gauss(landmarks, landmarks, 0.5), y)
    errors = {}
    for penalty in np.geomspace(0.3, 300, 16):
        alone = np.empty(30)
        for i in range(30):
            rest = np.delete(np.arange(30), i)
            model = KernelRidge(alpha=penalty, kernel="rbf", gamma=0.5).fit(x[rest], y[rest])
            alone[i] = model.predict(x[[i]])[0, 0]
        errors[penalty] = (((alone - y[:, 0]) ** 2).mean(), alone)
    best = min(errors, key=lambda p: errors[p][0])
    model = KernelRidge(alpha=best, kernel="rbf", gamma=0.5).fit(x, y)
    np.testing.assert_allclose(kernel @ weights, model.predict(x), atol=2e-3)
    np.testing.assert_allclose(held_out[:, 0], errors[best][1], atol=2e-3)


def test_the_mean_of_scorers_is_their_mean_and_terms_need_a_penalty():
    prompts, scores, models = data()
    parts = [TermQuality(1.0), NeighbourQuality(k=5)]
    both = MeanQuality(parts).fit(prompts, scores, models).predict(prompts[:7])
    np.testing.assert_allclose(both, (parts[0].predict(prompts[:7]) + parts[1].predict(prompts[:7])) / 2)
    with pytest.raises(InputError, match="at least one"):
        MeanQuality([]).fit(prompts, scores, models)
    with pytest.raises(InputError, match="above 0"):
        TermQuality(0.0).fit(prompts, scores, models)


def test_features_and_kernel_survive_arrays():
    prompts, scores, models = data()
    scorer = KernelQuality(PromptFeatures(n_topics=10)).fit(prompts, scores, models)
    again = KernelQuality.from_arrays(scorer.to_arrays())
    np.testing.assert_allclose(again.predict(prompts), scorer.predict(prompts), atol=5e-3)


class Reads:
    """Stands for an embedder: a vector by the prompt's characters, and one that all prompts have in common."""

    n_dimensions = 8

    def __init__(self, *given, instruction="", shift=0.0, **how):
        self.instruction, self.shift = instruction, shift

    def embed(self, texts):
        rows = [np.bincount([ord(c) % 8 for c in text + self.instruction], minlength=8) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), 8) + self.shift


def test_what_all_prompts_have_in_common_counts_for_nothing():
    prompts, scores, models = data()
    plain, shifted = (
        KernelQuality(PromptFeatures(0, embedders=[Reads(shift=shift)])).fit(prompts, scores, models)
        for shift in (0.0, 1000.0)
    )
    np.testing.assert_allclose(plain.predict(prompts), shifted.predict(prompts), atol=1e-3)
    again = KernelQuality.from_arrays(shifted.to_arrays(), PromptFeatures(embedders=[Reads(shift=1000.0)]))
    np.testing.assert_allclose(again.predict(prompts), shifted.predict(prompts), atol=1e-6)


def test_a_language_model_is_told_what_the_models_are_also_after_loading(monkeypatch):
    made = []

    class Told(Reads):
        def __init__(self, *given, **how):
            super().__init__(*given, **how)
            made.append(self.instruction)

    monkeypatch.setattr("pilotfish.scorers.prompts.StateEmbedder", Told)
    monkeypatch.setattr("pilotfish.scorers.prompts.OnnxEmbedder", Reads)
    _readers.cache_clear()
    prompts, scores, models = data()
    scorer = KernelQuality(PromptFeatures.of("language", "Answer in a word.")).fit(prompts, scores, models)
    assert (scorer.features_.n_topics, len(scorer.features_.embedders)) == (0, 2)
    arrays = scorer.to_arrays()
    _readers.cache_clear()
    again = KernelQuality.from_arrays(arrays)
    _readers.cache_clear()
    assert made == ["Answer in a word."] * 2
    assert (again.features_.kind, again.features_.instruction) == ("language", "Answer in a word.")
    np.testing.assert_allclose(again.predict(prompts), scorer.predict(prompts), atol=1e-6)


@pytest.mark.parametrize("prompts", [["?" * i for i in range(1, 61)], [f"q {i}" for i in range(60)]])
def test_prompts_without_words_to_tell_them_by_are_described_by_their_form(prompts):
    features = PromptFeatures().fit(prompts)
    described = features.transform(prompts)
    assert described.shape == (60, len(form_of("a")))
    again = PromptFeatures.from_arrays(features.to_arrays()).transform(prompts)
    np.testing.assert_array_equal(again, described)


def test_neighbours_are_a_plain_mean():
    prompts = ["red apple pie", "red apple tart", "blue ocean wave", "blue ocean tide"]
    scorer = NeighbourQuality(k=2).fit(prompts, np.array([[1.0], [0.0], [1.0], [1.0]]), ["m"])
    assert scorer.predict(["red apple"])[0, 0] == 0.5
    assert scorer.predict(["blue ocean"])[0, 0] == 1.0


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_two_strengths_differ_by_the_log_odds_of_wins(a, b):
    strengths = bradley_terry(np.array([[0.0, a], [b, 0.0]]), prior=0.0, n_steps=300)
    assert strengths[0] - strengths[1] == pytest.approx(np.log(a / b), abs=1e-6)


def test_three_strengths_satisfy_the_likelihood_equations():
    wins = np.array([[0, 6, 9], [4, 0, 7], [1, 3, 0]], dtype=float)
    s = bradley_terry(wins, prior=0.0, n_steps=2000)
    chance = 1 / (1 + np.exp(-(s[:, None] - s[None])))
    expected = ((wins + wins.T) * chance).sum(axis=1)
    np.testing.assert_allclose(expected, wins.sum(axis=1), atol=1e-6)


def test_elo_weights_near_duels_more():
    prompts = ["add one and two"] * 10 + ["who wrote the book"] * 10
    scores = np.array([[0.0, 1.0]] * 10 + [[1.0, 0.0]] * 10)
    near_sum, near_book = (
        SimilarityElo().fit(prompts, scores, ["a", "b"]).predict(["add one and two", "who wrote the book"])
    )
    assert near_sum[1] > 0.5 > near_sum[0]
    assert near_book[0] > 0.5 > near_book[1]


def test_factor_gradient_equals_finite_differences():
    rng = np.random.default_rng(1)
    parameters = {
        "v": rng.normal(size=(3, 2)),
        "w1": rng.normal(size=(4, 2)),
        "b": rng.normal(size=2),
        "w2": rng.normal(size=2),
    }
    q = rng.normal(size=(5, 4))
    duels = battles(rng.integers(0, 2, (5, 3)).astype(float))
    _, gradients = factor_loss(parameters, q, duels, 0.01)
    for name, value in parameters.items():
        for at in np.ndindex(value.shape):
            moved = {k: p.copy() for k, p in parameters.items()}
            moved[name][at] += 1e-6
            up, _ = factor_loss(moved, q, duels, 0.01)
            moved[name][at] -= 2e-6
            down, _ = factor_loss(moved, q, duels, 0.01)
            assert gradients[name][at] == pytest.approx((up - down) / 2e-6, abs=1e-5)


def test_factor_loss_by_hand():
    parameters = {"v": np.array([[1.0], [0.0]]), "w1": np.array([[2.0]]), "b": np.array([0.0]), "w2": np.array([1.0])}
    duels = (np.array([0]), np.array([0]), np.array([1]), np.array([1.0]))
    loss, _ = factor_loss(parameters, np.array([[0.5]]), duels, 0.0)
    assert loss == pytest.approx(np.log(1 + np.exp(-1.0)))


def test_ranker_learns_what_better_answers_share():
    questions = [f"What is {i} + {i}?" for i in range(30)]
    answers = [[f"{i} + {i} = {2 * i}", f"{i} + {i} = {2 * i + 1}", "I am not sure"] for i in range(30)]
    ranker = PairRanker().fit(questions, answers, np.tile([1.0, 0.0, 0.0], (30, 1)))
    rates = ranker.win_rates("What is 50 + 50?", ["50 + 50 = 101", "50 + 50 = 100", "I am not sure"])
    assert rates.argmax() == 1
    assert rates.mean() == pytest.approx(0.5)
    left = ranker.win_rates("What is 50 + 50?", ["50 + 50 = 101", "50 + 50 = 100"])
    assert left.argmax() == 1
    assert left.sum() == pytest.approx(1.0)
    more = ranker.win_rates("What is 50 + 50?", ["50 + 50 = 101", "I am not sure", "50 + 50 = 101", "50 + 50 = 100"])
    assert more.argmax() == 3
    with pytest.raises(InputError, match="better and a worse"):
        PairRanker().fit(questions, answers, np.ones((30, 3)))


def test_tags_shrink_to_the_mean():
    prompts = ["algebra one", "algebra two", "history one", "history two"]
    scores = np.array([[1.0], [1.0], [0.0], [0.0]])
    tags = TagQuality(lambda p: frozenset([p.split()[0]]), shrinkage=2.0).fit(prompts, scores, ["m"])
    assert tags.predict(["algebra", "music"])[:, 0].tolist() == [0.5 + 2 * 0.5 / (2 + 2), 0.5]


def test_model_tagger_asks_each_prompt_once():
    class Tags:
        n = 0

        def generate(self, requests):
            self.n += len(requests)
            return [Reply("Algebra, number theory.") for _ in requests]

    model = Tags()
    tagger = ModelTagger(model)
    assert tagger("x") == tagger("x") == {"algebra", "number theory"}
    assert model.n == 1


# The cues written out as expressions, one per number of form_of from the 21st on.
CUES = (
    r"\bhow (many|much)\b",
    r"\b(calculate|compute|find|evaluate|solve|what is the value)\b",
    r"\b(not|except|false|least)\b",
    r"\b(all|none|both|neither) of\b|\bi and ii\b|\biii\b",
    r"\bwhich of the following\b",
    r"\bstatement\b",
    r"\b(valid|argument|premise|conclusion|predicate|logic)\b",
    r"\b(prove|theorem|group|ring|field|matrix|integral|vector)\b",
    r"\b(moral|wrong|ethic\w*|right)\b",
    r"\b(plaintiff|defendant|contract|court|statute|liable)\b",
    r"\b(patient|year-old|symptom\w*|diagnosis|blood)\b",
    r"\b(passage|according to|author|text)\b",
    r"\b(percent|ratio|average|profit|interest|rate)\b|%",
    r"\b(best|most|likely|main|primary)\b",
    r"\b(explain|why|describe|discuss)\b",
    r"\b(write|story|poem|essay|email|letter)\b",
    r"\b(function|python|code|program|algorithm)\b",
    r"\b(clue|puzzle|person|house|left|next to)\b",
    r"\b(suppose|assume|given|let)\b",
    r"\b(hour|minute|day|week|year)s?\b",
    r"\bif\b",
    r"___?|\bblank\b",
)
PIECES = sorted(
    {w for cue in CUES for w in re.findall(r"[a-z]+(?: [a-z]+)*|%", re.sub(r"\\[bw]\*?|[()|?_]", ";", cue))}
    | {"how many", "none of", "i and ii", "what is the value", "year-old", "ethical", "symptoms", "hours", "__", "_"}
    | {"knot", "however", "awhile", "blanks", "somewhat", "next", "toe", "(A)", "12", "A.", "\n", "{x}", "3 / 4"}
)


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([" ", "", "-", ". ", "\n"])), max_size=12))
@settings(max_examples=400, deadline=None)
def test_form_counts_characters_and_finds_cues_as_written_out(parts):
    prompt = "".join(piece + gap for piece, gap in parts)
    for text in (prompt, prompt.upper()):
        form = form_of(text)
        assert form[20:] == [float(re.search(cue, text, re.IGNORECASE) is not None) for cue in CUES]
        n = max(len(text), 1)
        assert form[6] == sum(c.isdigit() for c in text) / n
        assert form[8] == sum(c.isupper() for c in text) / n
        assert form[9] == sum(not c.isalnum() and not c.isspace() for c in text) / n
        assert form[13] == sum(any(c.isdigit() for c in line) for line in text.split("\n")) / len(text.split("\n"))


def test_prompts_alike_but_for_their_spaces_have_no_topics_to_tell_them_apart():
    prompts = ["same words each time" + " " * i for i in range(40)]
    scorer = NeighbourQuality(k=40).fit(prompts, np.arange(40.0)[:, None] % 2, ["m"])
    np.testing.assert_allclose(scorer.predict(prompts[:1]), 0.5)


def test_tags_are_words_of_any_script():
    prompts = [f"напиши стихи {i}" for i in range(20)] + [f"сколько будет {i}" for i in range(20)]
    scores = np.array([[1.0, 0.0]] * 20 + [[0.0, 1.0]] * 20)
    tagger = KeywordTagger(most=0.6).fit(prompts)
    assert {"стихи", "сколько"} <= tagger.vocabulary_
    predicted = TagQuality(tagger).fit(prompts, scores, ["a", "b"]).predict(["стихи о море", "сколько стоит"])
    assert predicted.argmax(axis=1).tolist() == [0, 1]
    assert KeywordTagger(1, 1.0).fit(["café it's x_y"])("café it's x_y") == {"café", "it's", "#length4"}


@pytest.mark.parametrize("scorer", [NeighbourQuality(), SimilarityElo()])
def test_many_prompts_are_compared_with_what_was_learned_a_few_at_a_time(scorer):
    prompts = [f"number {i} of {i % 97}" for i in range(2500)]
    scorer.fit(prompts, np.arange(5000).reshape(2500, 2) % 3 > 0, ["a", "b"])
    one = scorer.predict(prompts[:5])
    tracemalloc.start()
    many = scorer.predict(prompts * 4)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10_000 * 2500 * 8 * 0.6
    np.testing.assert_allclose(many[:5], one)
    np.testing.assert_allclose(many[7500:7505], one)
    assert scorer.predict([]).shape == (0, 2)
