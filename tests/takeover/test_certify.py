"""Certificates: what they promise, what they say when nothing can be promised."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pilotfish.errors import InputError
from pilotfish.takeover import Certificate, Target, Watch, certify


def calls(n: int, seed: int = 0, sure: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.beta(sure, 1, size=n)
    return confidence, (rng.random(n) > confidence).astype(float)


@pytest.mark.parametrize("measure", ["system", "answers"])
def test_certified_threshold_keeps_its_bound_on_its_own_data(measure: str) -> None:
    confidence, wrong = calls(4000)
    made = certify(confidence, wrong, Target(measure, 0.95))  # type: ignore[arg-type]
    assert made.ok
    assert made.loss <= made.loss_upper <= 0.05 + 1e-12
    assert 0 < made.coverage_lower < made.coverage < 1


def test_too_few_calls_say_how_many_more() -> None:
    made = certify(np.ones(50), np.zeros(50), Target("system", 0.97))
    assert not made.ok
    assert made.n_more == 99 - 50
    assert "49 more calls" in made.reason


@pytest.mark.parametrize("measure", ["system", "answers", "correctness"])
def test_a_call_that_looks_unfamiliar_keeps_no_good_student_from_the_others(measure: str) -> None:
    confidence, right = np.ones(600), np.zeros(600)
    confidence[:3] = -math.inf
    made = certify(confidence, right, Target(measure, 0.97), wrong=right, large_wrong=right)  # type: ignore[arg-type]
    assert (made.ok, made.coverage) == (True, 597 / 600)
    assert not certify(np.full(600, -math.inf), right, Target("system", 0.97)).ok


def test_a_student_as_right_as_the_large_model_is_told_to_name_a_level() -> None:
    right = np.zeros(600)
    made = certify(np.ones(600), right, Target("correctness", None), wrong=right, large_wrong=right)
    assert not made.ok
    assert "give a level" in made.reason
    assert certify(np.ones(600), right, Target("correctness", 0.95), wrong=right, large_wrong=right).ok


def test_a_hopeless_student_is_told_so() -> None:
    made = certify(np.linspace(0, 1, 500), np.ones(500), Target("answers", 0.97))
    assert not made.ok
    assert "not accurate enough" in made.reason


@pytest.mark.parametrize(("level", "n"), [(None, 60), (0.85, 120)])
def test_what_correctness_still_needs_is_about_what_certifies_it(level: float | None, n: int) -> None:
    wrong, large_wrong = np.resize([1.0] + 9 * [0.0], n), np.resize([0.0, 1.0, 0.0, 0.0], n)

    def made(n_times: int) -> Certificate:
        both = np.tile(wrong, n_times), np.tile(large_wrong, n_times)
        confidence = np.linspace(1, 0, n * n_times)
        return certify(confidence, both[0], Target("correctness", level), wrong=both[0], large_wrong=both[1])

    few = made(1)
    assert not few.ok
    assert few.n_more is not None
    assert few.n_more > n / 4
    assert made(2 + few.n_more // n).ok


def test_correctness_may_beat_the_large_model() -> None:
    rng = np.random.default_rng(1)
    confidence, wrong = calls(600, sure=12.0)
    large_wrong = (rng.random(600) < 0.25).astype(float)
    made = certify(confidence, wrong, Target("correctness", 0.85), wrong=wrong, large_wrong=large_wrong)
    assert made.ok
    assert made.coverage >= 0.8
    no_worse = certify(confidence, wrong, Target("correctness", None), wrong=wrong, large_wrong=large_wrong)
    assert no_worse.ok
    with pytest.raises(InputError, match="gold"):
        certify(confidence, wrong, Target("correctness", 0.85))


def test_correctness_holds_with_the_stated_risk() -> None:
    n_broken = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        confidence, wrong = calls(400, seed=seed, sure=5.0)
        large_wrong = (rng.random(400) < 0.22).astype(float)
        made = certify(confidence, wrong, Target("correctness", 0.8), wrong=wrong, large_wrong=large_wrong)
        if made.ok:
            t = made.threshold
            true_local_wrong = (1 - t**5) - 5 / 6 * (1 - t**6)
            n_broken += true_local_wrong + t**5 * 0.22 > 0.2
    assert n_broken <= 20 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_spend_ceiling_is_part_of_the_certificate() -> None:
    confidence, wrong = calls(3000)
    costs = np.full(3000, 0.002)
    made = certify(confidence, wrong, Target("system", 0.95), costs=costs)
    assert made.spend_upper is not None
    assert (1 - made.coverage) * 0.002 < made.spend_upper < 0.002
    refused = certify(confidence, wrong, Target("system", 0.95, max_spend=1e-5), costs=costs)
    assert not refused.ok
    assert "ceiling" in refused.reason


def test_spending_is_bounded_whatever_share_of_the_calls_is_dear() -> None:
    rng = np.random.default_rng(0)
    n_broken = 0
    for _ in range(300):
        confidence, wrong = calls(300, seed=int(rng.integers(1 << 30)))
        dear = rng.random(300) < 0.01
        made = certify(confidence, wrong, Target("system", 0.9), costs=np.where(dear, 1.0, 0.001), most_cost=1.0)
        assert made.spend_upper is not None
        n_broken += made.spend_upper < (1 - made.coverage) * 0.01
    assert n_broken <= 300 * 0.05


def test_groups_get_their_own_bounds() -> None:
    confidence, wrong = calls(2000)
    groups = ["a", "b"] * 1000
    made = certify(confidence, wrong, Target("system", 0.95), groups=groups)
    assert [g.group for g in made.groups] == ["a", "b"]
    assert sum(g.n for g in made.groups) == 2000
    assert all(g.n_wrong / g.n_local <= g.wrong_upper for g in made.groups)


def test_certificates_survive_json() -> None:
    for n in (20, 2000):
        made = certify(*calls(n), Target("system", 0.95), groups=["a"] * n)
        assert Certificate.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"measure": "vibes"}, "measure"),
        ({"level": 97}, "level"),
        ({"level": None}, "level"),
        ({"confidence": 1.0}, "confidence"),
        ({"max_spend": -1.0}, "max_spend"),
    ],
)
def test_bad_targets_name_the_field(fields: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=name):
        Target(**fields)  # type: ignore[arg-type]


def _watch() -> Watch:
    made = certify(*calls(4000), Target("system", 0.95))
    return Watch.for_certificate(made, unknown_labels_upper=0.01, unfamiliar_upper=0.05)


def test_a_failed_audit_holds_until_enough_comparisons_pass() -> None:
    watch = _watch()
    watch.audited(wrong=True)
    for _ in range(watch.n_hold):
        assert watch.holding
        watch.audited(wrong=False)
    assert not watch.holding


@pytest.mark.parametrize("level", [0.97, 0.9, 0.8, 0.6])
def test_a_sound_student_answers_most_of_its_calls_whatever_the_level(level: float) -> None:
    rng = np.random.default_rng(0)
    made = certify(np.ones(2000), rng.random(2000) < 0.8 * (1 - level), Target("answers", level))
    watch = Watch.for_certificate(made, unknown_labels_upper=0.01, unfamiliar_upper=0.05)
    n_local = 0
    for wrong in rng.random(20_000) < 0.8 * (1 - level):
        n_local += not watch.holding
        if watch.holding or rng.random() < watch.audit_share:
            watch.audited(bool(wrong))
    assert not watch.breach
    assert n_local / 20_000 > 0.9


@pytest.mark.parametrize("name", ["audited", "escalated", "labelled", "seen"])
def test_every_rate_can_hand_the_task_back(name: str) -> None:
    watch = _watch()
    for _ in range(200):
        getattr(watch, name)(False)
    assert not watch.breach
    for _ in range(60):
        getattr(watch, name)(True)
    assert "limit" in watch.breach


def test_a_watch_survives_json() -> None:
    watch = _watch()
    watch.audited(wrong=True)
    again = Watch.from_json(watch.to_json())
    assert again.to_json() == watch.to_json()
