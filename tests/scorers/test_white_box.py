"""Scorers that read token probabilities, on a real local model through both of its backends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pilotfish.models.gguf import GGUFModel
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import Model
from pilotfish.scorers.verification import InternalConfidence, OptionSetSize, option_probabilities
from pilotfish.types import Request
from tests.models.fixtures import pulled

ASKED = [Request.of(f"Is {word} a fruit or a tool? Answer fruit or tool.") for word in ("an apple", "a hammer")]


@pytest.fixture(scope="module", params=["gguf", "transformers"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    name = pulled("smollm2-135m-instruct")
    if request.param == "gguf":
        with GGUFModel(name, n_ctx=256, n_parallel=2, n_threads=1) as made:
            yield made
    else:
        pytest.importorskip("torch")
        yield TransformersModel(name)


def test_internal_confidence_is_a_probability_read_before_the_answer(model: Model) -> None:
    sure = InternalConfidence(model).score(ASKED)
    assert sure.shape == (2,)
    assert ((sure > 0) & (sure < 1)).all()
    assert sure[0] != sure[1]


def test_options_are_read_from_the_first_token(model: Model) -> None:
    asked = [request.replace(max_tokens=1, temperature=0.0, log_probs=20) for request in ASKED]
    p = np.array([option_probabilities(reply, ["fruit", "tool"]) for reply in model.generate(asked)])
    assert p.sum(axis=1) == pytest.approx(1.0)
    # The small model leans to one word, but an apple moves it towards fruit and a hammer towards tool.
    assert p[0, 0] > p[1, 0]
    scorer = OptionSetSize(model, ["fruit", "tool"], delta=0.4).fit(ASKED * 3, [0, 1] * 3)
    assert scorer.score(ASKED).shape == (2,)
