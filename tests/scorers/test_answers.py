"""Scores of answers, agreement, verification and conformal sets against hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.errors import InputError, NotFittedError
from pilotfish.models.fake import FakeModel
from pilotfish.scorers.agreement import Agreement, OutputAgreement, triplet_quality, vote
from pilotfish.scorers.answers import (
    AnswerQuality,
    CalibratedConfidence,
    ExpectedWork,
    MeanLogProb,
    StatedConfidence,
    answer_form,
    final_answer,
    wrong_equations,
)
from pilotfish.scorers.verbalised import AskedConfidence, VerbalisedConfidence
from pilotfish.scorers.verification import (
    ChainOfVerification,
    ConformalSetSize,
    InternalConfidence,
    OptionSetSize,
    SelfVerification,
    option_probabilities,
)
from pilotfish.types import Exchange, Message, Reply, Request, TokenLogProb


class Says:
    """Answers by a function of the prompt; counts calls."""

    def __init__(self, answer):
        self.answer, self.prompts = answer, []

    def generate(self, requests):
        self.prompts += [r.prompt for r in requests]
        made = [self.answer(r.prompt) for r in requests]
        return [m if isinstance(m, Reply) else Reply(m) for m in made]


def exchange(question, answer, *samples, **fields):
    return Exchange(Request.of(question), Reply(answer, **fields), samples=tuple(map(Reply, samples)))


def graded(n=80, seed=0):
    rng = np.random.default_rng(seed)
    asked, right = [], []
    for i in range(n):
        good = rng.random() < 0.5
        asked.append(exchange(f"What is {i} + {i}?", f"{i} + {i} = {2 * i if good else 2 * i + 1 + i % 5}"))
        right.append(float(good))
    return asked, np.array(right)


SCORERS = [StatedConfidence(), MeanLogProb(), MeanLogProb(least=True), VerbalisedConfidence(), Agreement()]


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_answer_scorer_gives_one_number_or_nan(scorer):
    token = TokenLogProb("a", -1.0)
    full = Exchange(
        Request.of("q"),
        Reply("Confidence: 50%", confidence=0.5, log_probs=(token,)),
        samples=(Reply("Confidence: 50%"),),
    )
    scores = scorer.score([full, exchange("q", "plain words")])
    assert scores.shape == (2,)
    assert np.isfinite(scores[0])
    assert np.isnan(scores[1])
    assert scorer.score([]).shape == (0,)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Confidence: 85%", 0.85), ("confidence is 0.4", 0.4), ("Probability 90", 0.9), ("Confidence: 1", 1.0),
        ("Confidence: 8/10", 0.8), ("Confidence: 4 out of 5.", 0.8), ("confidence 1/0", 1.0),
    ],
)  # fmt: skip
def test_verbalised_confidence_reads_percent_and_shares(text, value):
    assert VerbalisedConfidence().score([exchange("q", text)])[0] == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 1,234", "1234"), ("The answer is (B).", "b"), ("so 3 + 4 = 7", "7"), ("Yes.", "yes"),
        ("A: $5.50", "5.5"), ("$12,345.67", "12345.67"), ("It is 0.12345678.", "0.12345678"),
        ("1,000,000.00", "1000000"), ("9" * 20, "9" * 20),
    ],
)  # fmt: skip
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("<<3*4=12>>", (1, 0)),
        ("2 + 2 = 5", (0, 1)),
        ("$1,000 / 4 = $250", (1, 0)),
        ("50% * 10 = 5", (1, 0)),
        ("no sums", (0, 0)),
        ("<<__import__('os')=1>>", (0, 0)),
        ("<<9**9**9=1>>", (0, 0)),
        ("1 / 0 = 3", (0, 0)),
    ],
)
def test_equations_are_checked_and_nothing_else_is_run(text, counts):
    assert wrong_equations(text) == counts


@pytest.mark.parametrize("loop", ["9", "1+", "1 + ", "1,", "= 5 ", "<<1+", "1x", "= " + " " * 999, "5% "])
def test_an_answer_that_repeats_itself_without_end_is_described_all_the_same(loop):
    answer = "The answer is " + loop * (200_000 // len(loop))
    assert np.isfinite(answer_form("How many?", answer, ["#### 3"])).all()
    assert isinstance(final_answer(answer), str)


def test_a_number_beyond_all_numbers_is_described():
    assert np.isfinite(answer_form("How many?", "= " + "9" * 400, ["= -" + "9" * 400])).all()


@given(st.text(max_size=200))
@settings(max_examples=80, deadline=None)
def test_any_text_can_be_described(text):
    asked, right = graded(10)
    scores = AnswerQuality().fit(asked, right).score([exchange(text, text)])
    assert np.isfinite(scores).all()


def test_learned_quality_tells_wrong_sums():
    asked, right = graded()
    scorer = AnswerQuality().fit(asked[:60], right[:60])
    scores = scorer.score(asked[60:])
    assert scores[right[60:] == 1].min() > scores[right[60:] == 0].max()
    again = AnswerQuality.from_arrays(scorer.to_arrays())
    np.testing.assert_allclose(again.score(asked[60:]), scores)
    with pytest.raises(NotFittedError):
        AnswerQuality().score(asked)
    with pytest.raises(InputError, match="one target each"):
        AnswerQuality().fit(asked, right[:3])


def test_expected_work_measures_the_distance():
    solved = [(f"Add {i} and {i + 2}.", f"{i} + {i + 2} = {2 * i + 2}") for i in range(20)]
    work = ExpectedWork().fit([q for q, _ in solved], [a for _, a in solved])
    usual = work.describe(exchange("Add 4 and 6.", "4 + 6 = 10"))
    odd = work.describe(exchange("Add 4 and 6.", "4 + 6 = 10, 10 * 3 = 30, 30 / 5 = 6"))
    assert abs(usual[-5]) < abs(odd[-5])


def test_calibrated_confidence_is_isotonic_and_keeps_nan():
    asked = [exchange("q", "a", confidence=c) for c in (0.1, 0.2, 0.8, 0.9)] + [exchange("q", "a")]
    scorer = CalibratedConfidence(StatedConfidence()).fit(asked, np.array([0, 1, 1, 1, 0.0]))
    scores = scorer.score(asked)
    assert scores[0] == 0.0
    assert scores[2] == 1.0
    assert math.isnan(scores[4])
    with pytest.raises(InputError, match="0 answers have a score"):
        CalibratedConfidence(StatedConfidence()).fit([exchange("q", "a")], np.array([1.0]))


def test_agreement_counts_recorded_samples_and_asks_where_there_are_none():
    assert Agreement().score([exchange("q", "it is 4", "4", "5", "so 4")])[0] == pytest.approx(2 / 3)
    model = Says(lambda p: "4" if "step" in p else "5")
    assert Agreement(model, n_samples=3).score([exchange("2+2?", "4")])[0] == pytest.approx(1 / 3)
    assert len(set(model.prompts)) == 3


def test_vote_takes_the_most_frequent():
    reply, share = vote([Reply("1"), Reply("It is 2"), Reply("2"), Reply("3")])
    assert (reply.text, share) == ("It is 2", 0.5)
    with pytest.raises(InputError):
        vote([])


def test_triplets_find_the_noise_of_each_model():
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=(4000, 1, 3)), np.array([0.5, 0.7, 1.0, 2.0])
    vectors = truth + rng.normal(size=(4000, 4, 3)) * noise[None, :, None]
    precision = 1 / noise**2
    np.testing.assert_allclose(triplet_quality(vectors), precision / precision.sum(), rtol=0.15)
    with pytest.raises(InputError, match="at least 3 models"):
        triplet_quality(vectors[:, :2])


def test_identical_outputs_are_equally_good_and_bound_the_rest():
    same = np.ones((5, 3, 4))
    np.testing.assert_array_equal(triplet_quality(same), np.full(3, 1 / 3))
    odd = same.copy()
    odd[:, 2] = -1.0
    # The first two have no noise, taken as a thousandth of the mean distance; the third's is the distance itself.
    floor = 0.001 * 2 / 3
    np.testing.assert_allclose(triplet_quality(odd), np.array([1, 1, floor]) / (2 + floor))


def test_output_agreement_needs_no_labels():
    class Letters:
        n_dimensions = 26

        def embed(self, texts):
            return np.array([[t.count(chr(97 + k)) for k in range(26)] for t in texts], dtype=np.float32)

    prompts = [f"say {c * 3}" for c in "abcdefgh"]
    outputs = [[c * 3, c * 3, "zzz"] for c in "abcdefgh"]
    for k in (0, 3):
        scorer = OutputAgreement(Letters(), k=k).fit_outputs(prompts, outputs, ["a", "b", "odd"])
        assert (scorer.predict(["say abc"]).argmin(axis=1) == 2).all()


def first(**tops):
    pairs = tuple((t, math.log(p)) for t, p in tops.items())
    return Reply(pairs[0][0], log_probs=(TokenLogProb(pairs[0][0], pairs[0][1], pairs),))


def test_option_probabilities_add_up_and_merge_spellings():
    reply = Reply(
        "x",
        log_probs=(
            TokenLogProb(
                "Yes", math.log(0.5), (("Yes", math.log(0.5)), (" yes", math.log(0.1)), ("No", math.log(0.2)))
            ),
        ),
    )
    np.testing.assert_allclose(option_probabilities(reply, ["Yes", "No"]), [0.75, 0.25])
    with pytest.raises(InputError, match="no log-probabilities"):
        option_probabilities(Reply("x"), ["Yes"])


def test_internal_confidence_is_p_yes():
    model = Says(lambda p: first(Yes=0.6, No=0.2) if "easy" in p else first(No=0.6, Yes=0.2))
    np.testing.assert_allclose(InternalConfidence(model).score([Request.of("easy"), Request.of("hard")]), [0.75, 0.25])
    assert InternalConfidence(model).score([]).shape == (0,)


def test_self_verification_is_a_share():
    votes = iter(["Yes", "No, wrong", "yes.", "Yes", "no", "No", "Maybe", "No"])
    scores = SelfVerification(Says(lambda p: next(votes)), n_samples=4).score([exchange("q", "a"), exchange("q", "b")])
    assert scores.tolist() == [0.75, 0.0]


def test_chain_of_verification_compares_results():
    def answer(prompt):
        if "Write 2 short" in prompt:
            return "Is 2+2 four?\nIs 4 even?"
        return "The answer is 4." if "Known facts" in prompt else "Yes"

    scores = ChainOfVerification(Says(answer), n_questions=2).score([exchange("2+2?", "4"), exchange("2+2?", "5")])
    assert scores.tolist() == [1.0, 0.0]


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_conformal_sets_cover(seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4), 1200)
    labels = np.array([rng.choice(4, p=row) for row in p])
    sets = ConformalSetSize(0.2).fit(p[:200], labels[:200])
    covered = p[200:][np.arange(1000), labels[200:]] >= sets.threshold_
    # Given 200 calibration answers the coverage has a standard deviation of .031 around .8: five of them.
    assert covered.mean() > 0.645
    assert (sets.score(list(p[200:])) <= -1).all()


def test_conformal_sets_cover_on_average_what_they_state():
    covered = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        p = rng.dirichlet(np.ones(4), 300)
        labels = np.array([rng.choice(4, p=row) for row in p])
        sets = ConformalSetSize(0.2).fit(p[:200], labels[:200])
        covered.append((p[200:][np.arange(100), labels[200:]] >= sets.threshold_).mean())
    assert np.mean(covered) == pytest.approx(0.8, abs=0.015)


def test_conformal_threshold_by_hand():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    sets = ConformalSetSize(0.4).fit(p, [0, 0, 1, 0])
    assert sets.threshold_ == pytest.approx(0.7)
    with pytest.raises(InputError, match="between 0 and 1"):
        ConformalSetSize(1.5).fit(p, [0, 0, 1, 0])


def test_option_set_size_prefers_sure_requests():
    model = Says(lambda p: first(A=0.9, B=0.05) if "easy" in p else first(A=0.4, B=0.38))
    scorer = OptionSetSize(model, ["A", "B"], delta=0.5).fit([Request.of("easy")] * 3, [0, 0, 0])
    sure, unsure = scorer.score([Request.of("easy"), Request.of("hard")])
    assert sure > unsure


@pytest.mark.parametrize(
    ("text", "value", "answer"),
    [
        ("4.\n\n**Confidence: 85%**", 0.85, "4."),
        ("4 (confidence: 0.6)", 0.6, "4"),
        ("The probability is 0.25.", 0.25, "The probability is 0.25."),
        ("My confidence 40% was low, so I looked it up: 7", 0.4, "My confidence 40% was low, so I looked it up: 7"),
    ],
)
def test_a_stated_confidence_is_taken_off_the_end_only(text, value, answer):
    assert VerbalisedConfidence.read(text) == (value, answer)


def test_a_system_message_of_parts_gets_the_instruction_too():
    model = FakeModel("4. Confidence: 85%")
    system = Message("developer", ({"type": "text", "text": "Be short."},))
    AskedConfidence(model).generate([Request((system, Message("user", "2+2?"))), Request.of("2+2?")])
    assert [call.system.partition("After")[0] for call in model.calls] == ["Be short.\n", ""]
    assert [call.prompt for call in model.calls] == ["2+2?"] * 2
