"""Scores without references: token baselines, self-checks, grounding, calibration, judges, forecasts."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from pilotfish.errors import ContextLengthError, InputError, ModelError, NotFittedError
from pilotfish.models.fake import FakeModel
from pilotfish.scorers import grounding
from pilotfish.scorers.calibration import (
    GroupCalibration,
    IsotonicCalibration,
    PlattCalibration,
    TemperatureCalibration,
    calibration_error,
    grouping_loss,
    reliability,
)
from pilotfish.scorers.entailment import SmallEntailment, _order
from pilotfish.scorers.forecasting import ProxyLM, _arrays, leave_one_out, task_similarity, text_features
from pilotfish.scorers.grounding import Grounding
from pilotfish.scorers.judges import GradeJudge, JudgePanel, PairJudge, win_rate
from pilotfish.scorers.likelihood import NegativePerplexity, TokenEntropy
from pilotfish.scorers.passages import facts, missing_facts, sentences, windows
from pilotfish.scorers.selfcheck import SelfCheck, SemanticEntropy
from pilotfish.types import Exchange, Reply, Request, TokenLogProb

ASKED = Request.of("Where is it?")


class Says:
    """Entailment by a rule: equal words entail, 'not' contradicts."""

    def probabilities(self, pairs):
        rows = []
        for premise, hypothesis in pairs:
            same = set(hypothesis.lower().strip(".").split()) <= set(premise.lower().strip(".").split())
            against = ("not" in premise.split()) != ("not" in hypothesis.split())
            rows.append([0.05, 0.05, 0.9] if against else [0.9, 0.05, 0.05] if same else [0.1, 0.8, 0.1])
        return np.array(rows).reshape(-1, 3)


class Letters:
    """Embeds by the share of each letter."""

    n_dimensions = 26

    def embed(self, texts):
        rows = np.array([[t.lower().count(chr(97 + k)) + 1e-3 for k in range(26)] for t in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def answer(text, *samples, context=()):
    return Exchange(ASKED, Reply(text), (), tuple(Reply(s) for s in samples), context)


# Token baselines


def test_token_baselines_and_what_lacks_probabilities():
    top = (("a", math.log(0.5)), ("b", math.log(0.25)))
    item = Exchange(ASKED, Reply("ab", log_probs=(TokenLogProb("a", math.log(0.5), top),)))
    p = np.array([2 / 3, 1 / 3])
    assert TokenEntropy().score([item])[0] == pytest.approx(float((p * np.log(p)).sum()))
    assert NegativePerplexity().score([item])[0] == pytest.approx(-2.0)
    for metric in (TokenEntropy(), NegativePerplexity()):
        assert math.isnan(metric.score([answer("no probabilities")])[0])


# Self-checks


@pytest.mark.parametrize("check", [SelfCheck(), SelfCheck(embedder=Letters()), SelfCheck(entailment=Says())])
def test_selfcheck_prefers_what_the_samples_say(check):
    said = ("The cat sleeps on the mat.", "The cat sleeps on the mat.", "The cat sleeps there.")
    good, bad = check.score([answer(t, *said) for t in ("The cat sleeps on the mat.", "Dogs do not fly to Oslo.")])
    assert good > bad
    none, empty = check.score([answer("The cat."), answer("", *said)])
    assert math.isnan(none)
    assert math.isnan(empty)
    [row] = [check.detail_ for _ in [check.score([answer("The cat sleeps. Dogs run!", *said)])]]
    assert [("The cat sleeps. Dogs run!")[s.start : s.end] for s in row[0]] == ["The cat sleeps.", "Dogs run!"]


def test_selfcheck_by_entailment_is_its_formula():
    # One sample contradicts (0.9 to 0.05), one supports (0.05 to 0.9).
    [found] = SelfCheck(entailment=Says()).score([answer("it is red", "it is red", "it is not red")])
    assert found == pytest.approx(1 - np.mean([0.05 / 0.95, 0.9 / 0.95]))


def test_semantic_entropy_counts_meanings_not_texts():
    metric = SemanticEntropy()
    same, split, half = metric.score(
        [answer("4", "It is 4.", "The answer is 4"), answer("4", "5", "6"), answer("4", "4", "5", "5")]
    )
    assert same == 0.0
    assert split == pytest.approx(-math.log(3))
    assert half == pytest.approx(-math.log(2))
    assert metric.detail_[1] == [0, 1, 2]
    assert math.isnan(metric.score([answer("4")])[0])
    by_meaning = SemanticEntropy(Says()).score([answer("it is red", "it is red", "it is not red")])
    p = np.array([2 / 3, 1 / 3])
    assert by_meaning[0] == pytest.approx(float((p * np.log(p)).sum()))
    near = SemanticEntropy(embedder=Letters()).score([answer("stop", "pots", "zzz")])
    assert near[0] == pytest.approx(float((p * np.log(p)).sum()))
    with pytest.raises(InputError, match="weights is 'other'"):
        SemanticEntropy(weights="other").score([])


def test_semantic_entropy_weights():
    def reply(text, log_prob):
        return Reply(text, log_probs=(TokenLogProb(text, log_prob),))

    item = Exchange(ASKED, reply("4", -0.1), (), (reply("5", -2.0), reply("5", -3.0)))
    w = np.exp([-0.1, -2.0, -3.0])
    p = np.array([w[0], w[1] + w[2]]) / w.sum()
    assert SemanticEntropy(weights="likelihood").score([item])[0] == pytest.approx(float((p * np.log(p)).sum()))
    p = np.array([1, 1 / 2 + 1 / 3]) / (1 + 1 / 2 + 1 / 3)
    assert SemanticEntropy(weights="rank").score([item])[0] == pytest.approx(float((p * np.log(p)).sum()))


# Grounding


def test_sentences_facts_and_windows():
    text = "Dr Ann left. It cost $3.50!\nNext line here"
    assert [text[a:b] for a, b in sentences(text)] == ["Dr Ann left.", "It cost $3.50!", "Next line here"]
    assert sentences("") == []
    assert facts("In March they paid 1,200.50 to Anna Bell.") == ["1200.5", "march", "anna", "bell"]
    assert missing_facts("Two men left on 3 May.", ["On May 3, 2 men went."]) == []
    assert missing_facts("The Bells rang in Paris.", ["A bell rang in Paris."]) == []
    met = "We met Jean-Luc O\u2019Brien, Conan O'Hara, the Beatles' heir, Émile, Anna's son and I'm sure Łódź's mayor."
    assert facts(met) == ["jean-luc", "o'brien", "conan", "o'hara", "beatles", "émile", "anna", "łódź"]
    assert missing_facts(met, [met.replace("\u2019", "'")]) == []
    assert missing_facts("They met Anna-Lena Ray.", ["Anna Ray came."]) == ["anna-lena"]
    assert missing_facts("It has 1,234,567 of them.", ["It has 1,234,568 of them."]) == ["1234567"]
    long = "This is a sentence of some words. " * 60
    made = windows(long, 200)
    assert len(made) > 5
    assert all(len(w) <= 200 for w in made)
    assert made[-1].endswith("words.")


@pytest.mark.parametrize("part", [None, Says()])
def test_grounding_flags_the_unsupported_sentence_with_its_place(part):
    context = ("The bridge in Porto was built in 1886. It has one arch of iron.",)
    text = "The bridge was built in 1886. It was sold to Brazil in 1999."
    metric = Grounding(part)
    good, mixed = metric.score([answer("It has one arch of iron.", context=context), answer(text, context=context)])
    assert good > mixed
    first, second = metric.detail_[1]
    assert text[second.start : second.end] == "It was sold to Brazil in 1999."
    assert first.support > second.support
    assert second.missing == ("1999", "brazil")
    assert math.isnan(metric.score([answer("no context")])[0])
    assert math.isnan(metric.score([answer("", context=context)])[0])


def test_grounding_learns_its_weights():
    context = ("The mill burnt down in 1901 and was rebuilt by Ann Lee in 1903.",)
    good = ["The mill burnt down in 1901.", "The mill was rebuilt in 1903.", "Ann Lee rebuilt the mill."] * 4
    bad = ["The mill was sold to Spain in 1950.", "Bob Ray died there.", "The harbour opened in 1822."] * 4
    items = [answer(t, context=context) for t in good + bad]
    metric = Grounding().fit(items, np.repeat([1.0, 0.0], 12))
    scores = metric.score(items)
    assert scores[:12].min() > scores[12:].max()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert Grounding.from_arrays(metric.to_arrays()).score(items) == pytest.approx(scores)
    with pytest.raises(NotFittedError, match="saved before fit"):
        Grounding().to_arrays()
    with pytest.raises(InputError, match="give both kinds"):
        Grounding().fit(items[:3], np.ones(3))


def test_entailment_models_say_what_is_missing(tmp_path):
    with pytest.raises(ModelError, match=r"no head\.safetensors"):
        SmallEntailment(tmp_path).probabilities([("a", "b")])
    assert SmallEntailment(tmp_path).probabilities([]).shape == (0, 3)
    assert _order({0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}) == [2, 1, 0]
    assert _order({0: "entailment", 1: "not_entailment"}) == [0, 1]
    with pytest.raises(InputError, match="trained for inference"):
        _order({0: "good", 1: "bad"})


# Calibration


def test_calibrators_bring_the_error_down():
    rng = np.random.default_rng(0)
    z = rng.normal(size=4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-z))).astype(float)
    claimed = 1 / (1 + np.exp(-3 * z))  # three times too sure
    before = calibration_error(claimed[2000:], y[2000:])
    for made in (IsotonicCalibration(), PlattCalibration(), TemperatureCalibration()):
        p = made.fit(claimed[:2000], y[:2000]).predict(claimed[2000:])
        assert calibration_error(p, y[2000:]) < before / 2
        assert (np.diff(p[np.argsort(claimed[2000:])]) >= -1e-12).all()
    assert TemperatureCalibration().fit(claimed, y).temperature_ == pytest.approx(3, rel=0.15)


def test_an_outlying_score_has_a_probability_without_a_warning():
    rng = np.random.default_rng(0)
    line = PlattCalibration().fit(-np.exp(rng.normal(size=60)), (rng.random(60) < 0.5).astype(float))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(line.predict(np.array([-1e9, 1e9]))) == [0, 1]


def test_one_class_only_gives_its_share_and_bad_labels_are_refused():
    ones = np.ones(5)
    assert IsotonicCalibration().fit(np.arange(5.0), ones).predict(np.array([2.0])) == pytest.approx([1.0])
    assert PlattCalibration().fit(np.arange(5.0), ones).predict(np.array([2.0]))[0] > 0.8
    assert PlattCalibration().fit(ones, np.array([0, 1, 0, 1, 0.0])).predict(ones)[0] == pytest.approx(0.4, abs=0.1)
    with pytest.raises(InputError, match="leave those out first"):
        IsotonicCalibration().fit(np.array([1.0, np.nan]), np.array([0.0, 1.0]))
    with pytest.raises(InputError, match="leave those out first"):
        IsotonicCalibration().fit(np.array([1.0, 2.0]), np.array([0.0, 0.5]))
    with pytest.raises(InputError, match="outside"):
        TemperatureCalibration().fit(np.array([2.0, 0.5]), np.array([0.0, 1.0]))
    with pytest.raises(NotFittedError):
        IsotonicCalibration().predict(ones)


def test_group_calibration_lowers_the_grouping_loss_where_groups_differ():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, 4000)
    p = rng.random(4000)
    y = (rng.random(4000) < np.clip(p + np.array([-0.3, 0.3, 0, 0])[group], 0, 1)).astype(float)
    features = np.eye(4)[group]
    learn, test = np.arange(2000), np.arange(2000, 4000)
    plain = IsotonicCalibration().fit(p[learn], y[learn]).predict(p[test])
    made = GroupCalibration().fit(p[learn], y[learn], features[learn])
    own = made.predict(p[test], features[test])
    assert 2 <= made.n_groups_ <= 8
    assert grouping_loss(plain, y[test], list(group[test])) > 0.015
    assert grouping_loss(own, y[test], list(group[test])) < 0.006
    assert ((own - y[test]) ** 2).mean() < ((plain - y[test]) ** 2).mean() - 0.01
    assert grouping_loss(p[test], (rng.random(2000) < p[test]).astype(float), list(group[test])) < 0.006
    found = reliability(own, y[test])
    assert found.n.sum() == 2000
    assert (found.low <= found.true).all()


# Judges


def test_pair_judge_takes_the_order_out():
    first, second = [answer("long answer")], [answer("short")]
    always_a = PairJudge(FakeModel("A"))
    assert always_a.compare(first, second) == pytest.approx([0.5])
    assert PairJudge(FakeModel("A"), swap=False).compare(first, second) == pytest.approx([1.0])
    assert always_a.detail_["first"][0] == 1.0
    assert always_a.detail_["swapped"][0] == 0.0


def test_a_judge_that_refuses_or_babbles_gives_no_verdict():
    pairs = [answer("x"), answer("y")]
    judge = PairJudge(FakeModel(["A", "I cannot say.", "It depends", ""]))
    found = judge.compare(pairs, pairs)
    assert judge.n_unreadable_ == 3
    assert found[0] == 1.0
    assert math.isnan(found[1])
    with pytest.raises(InputError, match="give pairs"):
        judge.compare(pairs, pairs[:1])
    assert judge.compare([], []).shape == (0,)
    grade = GradeJudge(FakeModel(["5", "no", "1."]))
    scores = grade.score([answer("x")] * 3)
    assert scores[0] == 1.0
    assert math.isnan(scores[1])
    assert scores[2] == 0.0
    with pytest.raises(InputError, match="n_grades is 12"):
        GradeJudge(FakeModel("1"), n_grades=12).score([answer("x")])


def test_a_long_context_is_searched_for_facts_once(monkeypatch):
    read = []
    monkeypatch.setattr(grounding, "known_facts", lambda context: read.append(context) or {"3"})
    Grounding().score([Exchange(Request.of("?"), Reply("It is 3. It is 4. It is 5."), context=("It is 3.",))])
    assert len(read) == 1


def test_a_judge_reads_less_of_what_its_context_cannot_hold():
    def judge(text):
        return FakeModel(lambda r: ContextLengthError("too long") if len(r.prompt) > 2000 else text)

    long, short = Exchange(Request.of("q" * 9000), Reply("a" * 9000), context=("c" * 9000,) * 3), answer("x")
    assert PairJudge(judge("A"), swap=False).compare([long, short], [short, long]) == pytest.approx([1.0, 1.0])
    assert GradeJudge(judge("3")).score([long, short]) == pytest.approx([0.5, 0.5])
    with pytest.raises(ContextLengthError):
        PairJudge(judge("A"), "r" * 3000).compare([short], [short])


def test_a_judge_with_probabilities_is_graded_by_them():
    top = (("1", math.log(0.25)), ("5", math.log(0.75)))
    model = FakeModel(lambda r: Reply("5", log_probs=(TokenLogProb("5", top[1][1], top),)))
    grades = ["1", "2", "3", "4", "5"]
    weights = np.array([0.25, 0.25, 0.25, 0.25, 0.75])
    expected = float(weights @ np.linspace(0, 1, 5) / weights.sum())
    assert GradeJudge(model).score([answer("x")])[0] == pytest.approx(expected)
    assert model.calls[0].extra["choices"] == grades


def test_the_panel_learns_who_misleads():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 400).astype(float)
    rates = np.array([0.8, 0.2, 0.55, 0.5, 0.75])  # the second is wrong on purpose
    votes = np.where(rng.random((400, 5)) < rates, gold[:, None], 1 - gold[:, None])
    panel = JudgePanel().fit(votes, np.arange(50), gold[:50])
    assert panel.weights_[1] < 0 < panel.weights_[0]
    accuracy = ((panel.predict(votes)[50:] > 0.5) == gold[50:]).mean()
    assert accuracy > 0.85
    assert accuracy > ((votes.mean(axis=1)[50:] > 0.5) == gold[50:]).mean() + 0.1
    assert panel.predict(np.full((1, 5), np.nan)) == pytest.approx([0.5])
    assert panel.predict(1 - votes) == pytest.approx(1 - panel.predict(votes))
    with pytest.raises(InputError, match="at least 2"):
        JudgePanel().fit(votes, np.array([0]), gold[:1])
    with pytest.raises(InputError, match="numbers in"):
        JudgePanel().fit(votes + 1, np.arange(2), gold[:2])
    with pytest.raises(NotFittedError):
        JudgePanel().predict(votes)


def test_the_win_rate_keeps_its_promise():
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(150):
        gold = (rng.random(300) < 0.6).astype(float)
        judged = np.clip(0.7 * gold + 0.15 + rng.normal(0, 0.1, 300), 0, 1)
        rows = rng.permutation(300)[:40]
        found = win_rate(judged, rows, gold[rows], 0.1)
        broken += not found.low <= gold.mean() <= found.high
        assert found.low <= found.value <= found.high
    assert broken <= 15
    with pytest.raises(InputError, match="not finite"):
        win_rate(np.array([np.nan, 0.5]), np.array([0, 1]), np.array([0.0, 1.0]))


# Forecasts


def test_proxy_lm_follows_the_proxies_and_the_card():
    rng = np.random.default_rng(0)
    level, ability = rng.uniform(0.3, 0.7, 8), np.linspace(-0.2, 0.2, 7)
    scores = np.clip(level + ability[:, None] + rng.normal(0, 0.01, (7, 8)), 0, 1)
    models, tasks = [f"m{i}" for i in range(7)], [f"t{j}" for j in range(8)]
    cards = {m: [float(a)] for m, a in zip(models, rng.normal(size=7), strict=True)}  # sizes say nothing
    data = np.array([text_features([f"task {j} is it?"]) for j in range(8)])
    proxies, held = ["m0", "m2", "m3", "m4"], [1, 5, 6]
    stated = leave_one_out(scores, models, tasks, data, proxies, cards, ["t0", "t1"])
    blind = leave_one_out(scores, models, tasks, data, proxies, cards)
    rmse = [float(np.sqrt(((p - scores)[held][:, 2:] ** 2).mean())) for p in (stated, blind)]
    assert rmse[0] < 0.07 < rmse[1]
    assert np.isnan(stated[0]).all()
    assert (stated[held][:, 0] == scores[held][:, 0]).all()
    made = ProxyLM().fit(scores, models, tasks, data, ["m0"], cards)
    few = made.predict([0.0], {"t0": 1.0}, {"t0": 2})
    assert made.predict([0.0])[0] < few[0] < 1.0


def test_tasks_that_ask_alike_move_together():
    from scipy.linalg import hadamard

    maths, code = ["Add 3 and 4 apples.", "What is 7 times 8?"], ["Write a Python function.", "Sort a list in code."]
    alike = task_similarity([maths, maths[::-1], code, code[::-1]])
    assert np.allclose(np.diag(alike), 1)
    assert alike[0, 1] > 0.99 > 0 > alike[0, 2]
    scored = task_similarity([maths, maths, code, code], ["number", "tests", "tests", "tests"])
    assert scored[0, 1] == pytest.approx(0.5)
    assert scored[2, 3] == pytest.approx(1.0)
    # Nothing in the known scores ties the tasks together; that two of them are alike does.
    scores = 0.5 + 0.1 * hadamard(8)[:, 1:5]
    models, tasks, data = list("abcdefgh"), ["add", "times", "code", "sort"], np.ones((4, 2))
    made = ProxyLM().fit(scores, models, tasks, data, ["a"], {m: [1.0] for m in models}, alike)
    moved = made.predict([1.0], {"add": 1.0}) - made.predict([1.0])
    assert moved[1] > 0.1 > 0 > moved[2]
    for bad in ([], [maths, []]):
        with pytest.raises(InputError, match="give queries"):
            task_similarity(bad)
    with pytest.raises(InputError, match="alike has shape"):
        ProxyLM().fit(scores, models, tasks, data, ["a"], {m: [1.0] for m in models}, alike[:2])


def test_trees_in_arrays_say_what_scikit_learn_says():
    from sklearn.ensemble import GradientBoostingRegressor

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    made = GradientBoostingRegressor(n_estimators=9, max_depth=2, random_state=0).fit(x, x[:, 0] * x[:, 1])
    assert np.allclose(_arrays(made).predict(x), made.predict(x), atol=1e-12)


def test_proxy_lm_refuses_what_it_cannot_use():
    models = ["a", "b", "c"]
    cards = {m: [1.0] for m in models}
    tasks, data = ["t", "u"], np.ones((2, 2))
    scores = np.array([[0.5, 0.5], [0.4, 0.4], [0.3, np.nan]])
    with pytest.raises(InputError, match="of nobody"):
        ProxyLM().fit(scores, models, tasks, data, ["nobody"], cards)
    with pytest.raises(InputError, match="'c' has no score on task 'u'"):
        ProxyLM().fit(scores, models, tasks, data, ["c"], cards)
    with pytest.raises(InputError, match="no score of b"):
        ProxyLM().fit(np.where([[0], [1], [0]], np.nan, scores), models, tasks, data, ["a"], cards)
    made = ProxyLM().fit(scores, models, tasks, data, ["a"], cards)
    with pytest.raises(InputError, match="numbers in"):
        made.predict([1.0], {"other": 0.5})
    with pytest.raises(NotFittedError):
        ProxyLM().predict([1.0])
    with pytest.raises(InputError, match="no texts"):
        text_features([])
