"""Routing on recorded outcomes: two models on MMLU, nine models, latency and fitting time, beside baselines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run, bootstrap
from benchmarks.outcomes import STRONG, WEAK, first_scores, interval, llmrouter9, mmlu
from benchmarks.routers.peers import beside_llmrouter, beside_routellm
from benchmarks.routers.readers import have_embedders, neighbour_features, read_by, read_states, sentences
from benchmarks.routers.timing import long_prompts, milliseconds
from pilotfish.protocols import PromptKind
from pilotfish.route.curves import apgr, calls_for, cpt
from pilotfish.route.policies import RoutePolicy, prices
from pilotfish.rules import value_minus_price
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.scorers.preferences import MatrixFactorisation, SimilarityElo
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.scorers.quality import NeighbourQuality, QualityScorer, TermQuality
from pilotfish.traffic.table import ReplyTable

_SHARES = (0.7, 0.1, 0.2)


# Of routers that know of each fitting question which subject it is of; of a new one they guess it.
_TOLD = ", subjects"
# What an application would tell the models that answer these questions.
_INSTRUCTION = "Answer the multiple-choice question with one letter."


def main(run: Run) -> None:
    if not have_embedders():
        return
    wanted = [labels for part, labels in (("mmlu", 1500), ("mmlu_all", 0)) if run.wants(part)]
    if wanted and run.wants_long("reading"):
        read_states(run, list(dict.fromkeys(mmlu(run).queries)), _INSTRUCTION)
    for labels in wanted:
        two_models(run, labels)
    if run.wants("nine"):
        nine_models(run)
    if run.wants("latency"):
        latency(run)
    if run.wants("peers"):
        beside_llmrouter(run, lambda: _nine_policy(run), sentences())
        beside_routellm(run, lambda: KernelQuality(read_by(_read(run))), _static, sentences())


def _read(run: Run) -> PromptKind:
    return "static" if run.quick else "encoder"


def _nine_policy(run: Run) -> RoutePolicy:
    # Chosen on held-out thirds of the fitting queries, the mean with TF-IDF + ridge and the second stage beside it.
    kernel = KernelQuality(read_by(_read(run)), n_landmarks=2000, second_stage=False)
    return RoutePolicy("kernel", kernel, n_settings=60)


def _static() -> KernelQuality:
    """A router that embeds every prompt, for timing."""
    return KernelQuality(PromptFeatures.of("static"))


def two_models(run: Run, labels: int) -> None:
    """Route MMLU between two models with some labels of the fitting split, or, at 0, with all."""
    table = mmlu(run)
    seeds = range(2 if run.quick else 5)
    # 9,829 labels fill more of the space than 1,500 landmarks span, as questions that are in no test split showed.
    n_landmarks = 1500 if labels else 3000
    kinds: list[PromptKind] = ["words", "static"] if run.quick else ["words", "static", "encoder"]
    if run.wants_long("reading"):
        kinds.append("language")
    named = [f"{kind}{told}" for kind in kinds for told in ("", _TOLD) if not told or kind in (_read(run), "language")]
    routers: dict[str, Callable[[], QualityScorer]] = {
        f"kernel, {name}": lambda kind=name.removesuffix(_TOLD): KernelQuality(
            read_by(kind, _INSTRUCTION), n_landmarks=n_landmarks
        )
        for name in named
    }
    routers["nearest neighbours"] = lambda: NeighbourQuality(features=neighbour_features(run))
    if labels:
        routers["similarity-weighted Elo"] = lambda: SimilarityElo(features=neighbour_features(run))
        routers["matrix factorisation"] = lambda: MatrixFactorisation(features=read_by(_read(run)))
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in seeds:
        fit, _, test = table.split(_SHARES, seed=seed)
        taught = fit.subset(range(labels)) if labels else fit
        weak, strong = test.scores.T
        coin = np.random.default_rng(seed).random(test.n_queries)
        for name, score in (("random", coin), ("oracle", strong - weak)):
            found.setdefault(name, []).append(_measures(score, weak, strong))
        for name, make in routers.items():
            router = make()
            started = time.perf_counter()
            if isinstance(router, KernelQuality):
                known = first_scores(fit, taught.n_queries)
                router.fit(fit.queries, known, fit.models, fit.groups if name.endswith(_TOLD) else ())
            else:
                router.fit(taught.queries, taught.scores, taught.models)
            seconds = time.perf_counter() - started
            predicted = router.predict(test.queries)
            found.setdefault(name, []).append(_measures(predicted[:, 1] - predicted[:, 0], weak, strong))
            print(f"seed {seed} {labels or 'all'} {name}: {found[name][-1]} fit {seconds:.1f} s", flush=True)
    for name, rows in found.items():
        a, c, s = np.mean(rows, axis=0)
        print(
            f"MMLU {labels or 'all'} labels  {name:26s} APGR {a:.3f}  CPT(80) {c:.1%}  calls for 95 % of strong {s:.1%}"
        )
    for kind, suffix in ((_read(run), ""), ("language", "_language")):
        if kind in kinds:
            _mmlu_figures(run, labels, found, f"kernel, {kind}", suffix)


def _measures(score: NDArray[np.float64], weak: NDArray[np.float64], strong: NDArray[np.float64]) -> tuple[float, ...]:
    return apgr(score, weak, strong), cpt(score, weak, strong, 0.8), calls_for(score, weak, strong, 0.95)


def _mmlu_figures(
    run: Run, labels: int, found: dict[str, list[tuple[float, float, float]]], router: str, suffix: str
) -> None:
    rows, told = np.array(found[router]), np.mean(found[router + _TOLD], axis=0)
    static = np.array(found["kernel, static"]).mean(axis=0)
    knn = float(np.mean([row[0] for row in found["nearest neighbours"]]))
    common = {"n": 2808, "seeds": len(rows), "nearest_neighbours": knn}
    peer = {"peer": "RouteLLM (arXiv:2406.18665, table 2)", "peer_source": "published"}
    share = "share of strong calls"
    figures: list[tuple[str, int, str, str, float, dict[str, Any]]] = (
        [
            ("mmlu_apgr_1500_labels", 0, "APGR", "higher", 0.70, {"peer_value": 0.603, **peer}),
            ("mmlu_cpt80_1500_labels", 1, share, "lower", 0.55, {"peer_value": 0.703, **peer}),
        ]
        if labels
        else [
            ("mmlu_apgr_all_labels", 0, "APGR", "higher", 0.75, {}),
            ("mmlu_calls_for_95", 2, share, "lower", 0.35, {}),
        ]
    )
    for name, column, unit, better, target, more in figures:
        low, high = interval(rows[:, column])
        run.figure(
            name + suffix, rows[:, column].mean(), unit=unit, better=better, low=low, high=high,
            with_subjects=float(told[column]), static=float(static[column]), target=target, **more, **common,
        )  # fmt: skip


def nine_models(run: Run) -> None:
    """Route among nine models on the test file, with all fitting queries and without those that recur in it."""
    train = llmrouter9(run, "train")
    test = llmrouter9(run, "test")
    if run.quick:
        train = train.subset(range(0, train.n_queries, 4))
    held = set(test.queries)
    clean = train.subset([i for i, query in enumerate(train.queries) if query not in held])
    n_shared = train.n_queries - clean.n_queries
    best = int(train.scores.mean(axis=0).argmax())
    best_score, best_cost = float(test.scores[:, best].mean()), float(test.costs[:, best].mean())
    print(f"best single {test.models[best]} {best_score:.3f}, oracle {test.scores.max(axis=1).mean():.3f}")
    print(f"{n_shared} of the {test.n_queries} test queries are among the {train.n_queries} fitting queries too")
    at = np.arange(test.n_queries)
    for suffix, fitted in (("", train), ("_no_shared_query", clean)):
        policy, price, frugal_price = _chosen(run, fitted)
        scores, costs = policy.predicted(test.queries)
        values, spent = _at(test, value_minus_price(scores, costs, price))
        low, high = bootstrap(values)
        frugal, frugal_spent = _at(test, value_minus_price(scores, costs, frugal_price))
        share = _share_on_curve(test, scores, costs, policy.settings(fitted), best_score) / best_cost
        knn = NeighbourQuality(features=neighbour_features(run)).fit(fitted.queries, fitted.scores, fitted.models)
        near = float(test.scores[at, knn.predict(test.queries).argmax(axis=1)].mean())
        terms = TermQuality().fit(fitted.queries, fitted.scores, fitted.models)
        ridge = float(test.scores[at, terms.predict(test.queries).argmax(axis=1)].mean())
        print(
            f"{fitted.n_queries} fitting queries: {values.mean():.3f} at {spent.mean() / best_cost:.0%} of the best's"
            f" cost, TF-IDF + ridge {ridge:.3f}, neighbours {near:.3f}; chosen to match the best single: "
            f"{frugal.mean():.3f} at {frugal_spent.mean() / best_cost:.0%}; on the curve {share:.0%}"
        )
        common = {"n": test.n_queries, "nearest_neighbours": near, "queries_shared": 0 if suffix else n_shared}
        run.figure(
            f"llmrouter9_score{suffix}", float(values.mean()), unit="mean score", better="higher", low=low, high=high,
            cost_share=float(spent.mean()) / best_cost, peer="TF-IDF + ridge, same fitting queries", peer_value=ridge,
            peer_source="measured", best_single=best_score, target=0.62, **common,
        )  # fmt: skip
        run.figure(
            f"llmrouter9_cost_at_best_single{suffix}", share, unit="share of best single's cost, least on the curve",
            better="lower", chosen_beforehand=float(frugal_spent.mean()) / best_cost,
            chosen_beforehand_score=float(frugal.mean()), best_single=best_score, target=0.35, **common,
        )  # fmt: skip


def _at(table: ReplyTable, chosen: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = np.arange(table.n_queries)
    return table.scores[rows, chosen], table.costs[rows, chosen]


def _chosen(run: Run, fitted: ReplyTable) -> tuple[RoutePolicy, float, float]:
    """The fitted router, its best price within best single's cost, and that of least spend that keeps its score.

    Both prices are chosen on predictions for thirds of the fitting queries that were held out.
    """
    parts = fitted.split((1 / 3, 1 / 3, 1 / 3), seed=0)
    where = {query: i for i, query in enumerate(fitted.queries)}
    scores, costs = np.empty(fitted.scores.shape), np.empty(fitted.scores.shape)
    for part in parts:
        at = np.array([where[query] for query in part.queries])
        rest = fitted.subset(np.setdiff1d(np.arange(fitted.n_queries), at))
        scores[at], costs[at] = _nine_policy(run).fit(rest).predicted(part.queries)
    single = int(fitted.scores.mean(axis=0).argmax())
    # A price below 0 only traces the curve to its dear end: it would pay for nothing.
    tried = [price for price in prices(scores, costs, 60) if price >= 0]
    runs = [_at(fitted, value_minus_price(scores, costs, price)) for price in tried]
    quality, spend = (np.array([r[k].mean() for r in runs]) for k in (0, 1))
    within = np.flatnonzero(spend <= fitted.costs[:, single].mean())
    top = within[quality[within].argmax()]
    reaching = np.flatnonzero(quality >= fitted.scores[:, single].mean())
    cheap = reaching[spend[reaching].argmin()] if reaching.size else top
    return _nine_policy(run).fit(fitted), tried[int(top)], tried[int(cheap)]


def _share_on_curve(
    test: ReplyTable, scores: NDArray[np.float64], costs: NDArray[np.float64], tried: list[float], goal: float
) -> float:
    """Least cost on the test curve that reaches the goal; NaN when none does."""
    runs = [_at(test, value_minus_price(scores, costs, price)) for price in tried]
    return min((float(spent.mean()) for values, spent in runs if values.mean() >= goal), default=float("nan"))


def latency(run: Run) -> None:
    """Time the router on 500-token prompts, one at a time, on one core, and its fitting."""
    from threadpoolctl import threadpool_limits

    table = mmlu(run)
    n = 4000 if run.quick else table.n_queries
    part = table.subset(range(n)) if run.quick else table
    prompts = long_prompts(table.queries)
    with threadpool_limits(1):
        router = _static()
        started = time.perf_counter()
        router.fit(part.queries, part.scores, [WEAK, STRONG])
        fitting = time.perf_counter() - started
    times = milliseconds(router, prompts)
    few = table.subset(range(1500))
    encoder = KernelQuality(PromptFeatures.of(_read(run))).fit(few.queries, few.scores, [WEAK, STRONG])
    with_encoder = milliseconds(encoder, prompts)
    low, high = bootstrap(np.array(times))
    print(f"fitting {n} rows on one core: {fitting:.1f} s")
    run.figure(
        "router_p50_ms",
        float(np.median(times)),
        unit="ms per 500-token prompt, one core",
        better="lower",
        low=low,
        high=high,
        n=len(times),
        fit_seconds=fitting,
        fit_rows=n,
        with_encoder_ms=None if run.quick else float(np.median(with_encoder)),
        target=2.0,
        note="static vectors; low and high are of the mean",
    )
