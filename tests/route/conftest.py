"""A table two models answered, and a model that can stand in for either."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.traffic.table import ReplyTable
from pilotfish.types import Reply, Usage


class Says:
    def __init__(self, name, cost=1.0):
        self.name, self.cost, self.asked = name, cost, []

    def generate(self, requests):
        self.asked += [r.prompt for r in requests]
        return [Reply(f"{self.name} says {r.prompt}", self.name, Usage(1, 1, self.cost)) for r in requests]


def make_table(n=400, seed=0, models=("small", "large")):
    rng = np.random.default_rng(seed)
    sums = rng.integers(0, 2, n)
    queries = [
        f"add {i} and {rng.integers(99)} now" if s else f"who wrote the old book {i}" for i, s in enumerate(sums)
    ]
    share = {"small": (0.1, 0.95), "middle": (0.6, 0.9), "large": (0.95, 0.95)}
    price = {"small": 0.001, "middle": 0.003, "large": 0.01}
    scores, replies = {}, {}
    for model in models:
        right = rng.random(n) < np.where(sums, *share[model])
        scores[model] = right.astype(float)
        replies[model] = [f"= {i if r else i + 1} {'sure' if r else 'perhaps, however'}" for i, r in enumerate(right)]
    return ReplyTable.of(
        queries, scores, {m: price[m] for m in models}, replies=replies, groups=[f"g{i % 10}" for i in range(n)]
    )


@pytest.fixture(scope="session")
def table():
    return make_table()


@pytest.fixture(scope="session")
def three():
    return make_table(models=("small", "middle", "large"))


@pytest.fixture
def says():
    return Says
