from __future__ import annotations

import numpy as np
import pytest

from pilotfish.decoding.controller import Costs, SpeedController


def simulate(share: float, draft: float, slope: float, n_tokens: int = 3000) -> float:
    """Speed against plain decoding on a made clock: a pass of n tokens takes 1 + slope (n - 1)."""
    rng = np.random.default_rng(0)
    costs = Costs()
    clock, written = 0.0, 0
    controller = SpeedController(costs)
    while written < n_tokens:
        k = controller.length("d")
        if k:
            clock += k * draft
            costs.add_draft("d", k, k * draft)
            k = controller.length("d", 3, range(1, k + 1))
        n = 0
        while n < k and rng.random() < share:
            n += 1
        seconds = 1 + slope * k
        clock += seconds
        costs.add_pass(k + 1, seconds)
        if k:
            controller.observe("d", 3, k, n)
        controller.wrote(n + 1)
        written += n + 1
    return written / clock


def best_fixed(share: float, draft: float, slope: float) -> float:
    return max(sum(share**i for i in range(k + 1)) / (1 + slope * k + k * draft) for k in range(17))


@pytest.mark.parametrize("draft", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("slope", [0.02, 0.15, 0.8])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 0.95])
def test_near_the_best_length_and_never_slower(share: float, draft: float, slope: float) -> None:
    speed = simulate(share, draft, slope)
    assert speed >= 0.97
    assert speed >= 0.85 * best_fixed(share, draft, slope)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("draft", [1.0, 2.0, 5.0])
def test_a_drafter_slower_than_the_target_costs_next_to_nothing(share: float, draft: float) -> None:
    assert simulate(share, draft, 0.1, n_tokens=6000) >= 0.98


def test_costs_lie_between_what_was_measured() -> None:
    costs = Costs()
    costs.add_pass(1, 1.0)
    costs.add_pass(9, 3.0)
    assert costs.pass_seconds(5) == pytest.approx(2.0)
    assert costs.pass_seconds(1) == 1.0
    assert costs.pass_seconds(17) > 3.0
    costs.add_pass(1, 1000.0)
    assert costs.pass_seconds(1) < 1.5
