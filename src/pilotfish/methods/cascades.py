"""Cascades: a small model answers first, and something decides whether its answer will do."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any, TypeVar

from pilotfish.errors import InputError
from pilotfish.methods import method
from pilotfish.protocols import Model, Scorer
from pilotfish.route.certify import Certificate, certify
from pilotfish.route.compound import AnyOf, LearnedPolicy
from pilotfish.route.heads import HeadPolicy
from pilotfish.route.policies import CascadePolicy, GatePolicy, Policy
from pilotfish.route.seen import Learned
from pilotfish.scorers.agreement import Agreement
from pilotfish.scorers.answers import AnswerQuality, CalibratedConfidence, StatedConfidence
from pilotfish.scorers.verbalised import VerbalisedConfidence
from pilotfish.scorers.verification import ChainOfVerification, InternalConfidence, SelfVerification
from pilotfish.traffic.table import ReplyTable
from pilotfish.training.cascade_head import CascadeHead
from pilotfish.types import Exchange

T = TypeVar("T")

_COMPARE = "pilotfish route compare --table t.jsonl --budget 2usd/1k --policy "
_LIVE = " --model small=qwen2.5-coder-0.5b-instruct"


@method(
    "query_level_uncertainty",
    paper="Chen 2025a, arXiv:2506.09669",
    group="cascades",
    needs="token probabilities",
    command=_COMPARE + "query_level_uncertainty" + _LIVE,
)
def query_level_uncertainty(models: Sequence[str], weak: Model) -> GatePolicy:
    """Ask the small model, before it writes a token, whether it can answer; its P(yes) decides."""
    return GatePolicy("query_level_uncertainty", models[0], models[-1], InternalConfidence(weak))


@method(
    "calibrated_cascade",
    paper="Enomoto and Eda 2021; Chen 2024a (Data Shunt)",
    group="cascades",
    needs="black box",
    command=_COMPARE + "calibrated_cascade",
)
def calibrated_cascade(models: Sequence[str], scorer: Scorer[Exchange] | None = None) -> CascadePolicy:
    """Learn what stopping gains over going on, the cascade's own objective, instead of being right as such."""
    scorers = tuple(_own(scorer or AnswerQuality()) for _ in models[:-1])
    return CascadePolicy("calibrated_cascade", tuple(models), scorers, gain=True)


@method(
    "selective_query",
    paper="Kag and Fedorov 2023",
    group="cascades",
    needs="training",
    command=_COMPARE + "selective_query",
)
def selective_query(models: Sequence[str], price: float = 0.1) -> HeadPolicy:
    """Train a small classifier and its gate together: right where it answers, cheap where it does not."""
    return HeadPolicy("selective_query", CascadeHead(gate=True, price=price), models[-1])


@method(
    "cascade_aware_training",
    paper="Wang 2024a, arXiv:2406.00060",
    group="cascades",
    needs="training",
    command=_COMPARE + "cascade_aware_training",
)
def cascade_aware_training(models: Sequence[str]) -> HeadPolicy:
    """Train a small classifier only on examples that it or the large model gets right."""
    return HeadPolicy("cascade_aware_training", CascadeHead(aware=True), models[-1])


@method(
    "frugal_ml",
    paper="Chen 2020, arXiv:2006.07512",
    group="cascades",
    needs="black box",
    command=_COMPARE + "frugal_ml",
)
def frugal_ml(models: Sequence[str], scorer: Scorer[Exchange] | None = None) -> AnyOf:
    """Choose a base service, an add-on service and the quality score below which the add-on is called."""
    scorers: dict[str, Scorer[Exchange]] = {
        model: CalibratedConfidence(_own(scorer)) if scorer else AnswerQuality() for model in models
    }
    return AnyOf("frugal_ml", _in_orders(permutations(models, 2), scorers))


@method(
    "frugal_gpt",
    paper="Chen 2023d, arXiv:2305.05176",
    group="cascades",
    needs="black box",
    command=_COMPARE + "frugal_gpt",
)
def frugal_gpt(models: Sequence[str], length: int = 3) -> AnyOf:
    """Learn to score answers, then search the order of up to three models and their thresholds under a budget."""
    if length < 2:
        raise InputError(f"length is {length}: give at least 2 models a cascade.")
    size = min(length, len(models))
    orders = (order for k in range(2, size + 1) for order in permutations(models, k))
    return AnyOf("frugal_gpt", _in_orders(orders, {model: AnswerQuality() for model in models}))


def _in_orders(orders: Iterable[tuple[str, ...]], scorers: Mapping[str, Scorer[Exchange]]) -> list[CascadePolicy]:
    """Cascades that score a model's answers alike wherever it stands, so that each is learned from once."""
    learned = Learned()
    return [
        CascadePolicy(
            " then ".join(order), order, tuple(scorers[m] for m in order[:-1]), n_settings=20, learned=learned
        )
        for order in orders
    ]


def _own(scorer: T) -> T:
    """A scorer for one stage alone, lest another stage's answers unlearn it; what does not learn is shared."""
    if not hasattr(scorer, "fit"):
        return scorer
    made = copy.copy(scorer)
    for name, part in vars(scorer).items():
        setattr(made, name, type(part)(map(_own, part)) if isinstance(part, list | tuple) else _own(part))
    return made


@method(
    "idk_cascade",
    paper="Wang 2017, arXiv:1706.00885",
    group="cascades",
    needs="black box",
    command=_COMPARE + "idk_cascade",
)
def idk_cascade(models: Sequence[str], scorer: Scorer[Exchange] | None = None) -> CascadePolicy:
    """Let every model but the last say "I don't know" below a threshold of calibrated confidence, set by cost."""
    scorers = tuple(CalibratedConfidence(_own(scorer or AnswerQuality())) for _ in models[:-1])
    return CascadePolicy("idk_cascade", tuple(models), scorers)


@method(
    "treacle", paper="Zhang 2024b, arXiv:2404.13082", group="cascades", needs="black box", command=_COMPARE + "treacle"
)
def treacle(models: Sequence[str]) -> LearnedPolicy:
    """Learn by looking back from the end whether to stop or go on, for every price of a dollar."""
    return LearnedPolicy("treacle", tuple(models))


@method(
    "verbalised_confidence",
    paper="Tian 2023, arXiv:2305.14975",
    group="cascades",
    needs="black box",
    command=_COMPARE + "verbalised_confidence",
)
def verbalised_confidence(models: Sequence[str]) -> CascadePolicy:
    """Stop where the model's own stated confidence is high enough."""
    return CascadePolicy("verbalised_confidence", tuple(models), tuple(VerbalisedConfidence() for _ in models[:-1]))


@method(
    "stated_confidence",
    paper="Wang 2017; the model's own probability",
    group="cascades",
    needs="black box",
    command="python -m benchmarks cascade --only heads",
)
def stated_confidence(models: Sequence[str]) -> CascadePolicy:
    """Stop where the reply carries a probability that is high enough."""
    return CascadePolicy("stated_confidence", tuple(models), tuple(StatedConfidence() for _ in models[:-1]))


@method(
    "chain_of_verification",
    paper="Dhuliawala 2023, arXiv:2309.11495",
    group="cascades",
    needs="black box",
    command=_COMPARE + "chain_of_verification" + _LIVE,
)
def chain_of_verification(models: Sequence[str], verifier: Model) -> CascadePolicy:
    """Stop where the answer stands after its own verification questions."""
    return CascadePolicy("chain_of_verification", (models[0], models[-1]), (ChainOfVerification(verifier),))


@method(
    "automix",
    paper="Madaan 2023, arXiv:2310.12963",
    group="cascades",
    needs="black box",
    command=_COMPARE + "automix" + _LIVE,
)
def automix(models: Sequence[str], verifier: Model, n_samples: int = 4, planned: bool = True) -> CascadePolicy:
    """Verify an answer a few times against its context, then stop or go on by threshold or by a plan.

    With one round of checks the plan's accept-minus-route value is the mean gain of stopping at each number of passed
    checks, which isotonic regression on the gain estimates.
    """
    _refuse_no_samples(n_samples)
    checked: Scorer[Exchange] = SelfVerification(verifier, n_samples)
    scorer = CalibratedConfidence(checked) if planned else checked
    return CascadePolicy("automix", (models[0], models[-1]), (scorer,), gain=planned)


def _refuse_no_samples(n_samples: int) -> None:
    if n_samples < 1:
        raise InputError(f"n_samples is {n_samples}: give at least 1.")


@method(
    "consistency_cascade",
    paper="Yue 2023, arXiv:2310.03094",
    group="cascades",
    needs="black box",
    command=_COMPARE + "consistency_cascade",
)
def consistency_cascade(
    models: Sequence[str], samples_of: Sequence[str] = (), sampler: Model | None = None, n_samples: int = 4
) -> CascadePolicy:
    """Go on where samples of the small model, or small models, disagree."""
    _refuse_no_samples(n_samples)
    beside = tuple(samples_of or models[1:-1])
    if not beside and sampler is None:
        raise InputError(
            "consistency_cascade has two models and nothing to compare the first one's answers with: give a third, "
            f"samples_of, or a model to sample, such as --model {models[0]}=qwen2.5-coder-0.5b-instruct."
        )
    scorer = Agreement(None if beside else sampler, n_samples)  # a sampler that is not asked is not to be paid for
    return CascadePolicy("consistency_cascade", (models[0], models[-1]), (scorer,), samples_of=beside)


@method(
    "guaranteed_takeover",
    paper="ours: learn then test with betting bounds, arXiv:2110.01052, arXiv:2010.09686",
    group="cascades",
    needs="black box",
    command="pilotfish route fit --table t.jsonl --budget 2usd/1k --policy calibrated_cascade --level 0.02",
)
def guaranteed_takeover(
    policy: Policy,
    calibrate: ReplyTable,
    strong: str,
    level: float,
    delta: float = 0.05,
    by_group: bool = False,
    settings: Sequence[Any] | None = None,
) -> Certificate:
    """Find the cheapest setting whose loss of quality and whose spend are both bounded at a stated risk."""
    return certify(policy, calibrate, strong=strong, level=level, delta=delta, by_group=by_group, settings=settings)
