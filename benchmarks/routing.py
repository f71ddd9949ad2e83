"""Routing on recorded outcomes: two models on MMLU, nine models, latency and fitting time, beside baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run, bootstrap
from benchmarks.outcomes import STRONG, WEAK, interval, llmrouter9, mmlu
from benchmarks.routers.peers import beside_llmrouter, beside_routellm
from benchmarks.routers.timing import long_prompts, milliseconds
from pilotfish.errors import DownloadError
from pilotfish.models.embedder import OnnxEmbedder, StaticEmbedder
from pilotfish.protocols import Embedder
from pilotfish.route.curves import apgr, calls_for, cpt
from pilotfish.route.policies import RoutePolicy
from pilotfish.rules import value_minus_price
from pilotfish.scorers.preferences import MatrixFactorisation, SimilarityElo
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.scorers.quality import KernelQuality, NeighbourQuality, QualityScorer
from pilotfish.traffic.table import ReplyTable

_SHARES = (0.7, 0.1, 0.2)


class Remembered:
    """An embedder that embeds each text once: the seeds of a benchmark share their texts."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.known: dict[str, NDArray[np.float32]] = {}

    @property
    def n_dimensions(self) -> int:
        return self.embedder.n_dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for start in range(0, len(new), 512):
            part = new[start : start + 512]
            self.known.update(zip(part, self.embedder.embed(part), strict=True))
        return np.array([self.known[text] for text in texts])


def embedders(run: Run) -> tuple[list[Embedder], list[Embedder]]:
    """The static vectors, and the static vectors with the sentence encoder; empty where they cannot be had."""
    try:
        fast: list[Embedder] = [Remembered(StaticEmbedder("wordllama"))]
        fast[0].embed(["warm"])
        if run.quick:
            return fast, fast
        full: list[Embedder] = [*fast, Remembered(OnnxEmbedder("all-minilm-l6-v2", precision="int8"))]
        full[1].embed(["warm"])
    except DownloadError as error:
        print(f"no embedder: {error}")
        return [], []
    return fast, full


def main(run: Run) -> None:
    fast, full = embedders(run)
    if run.wants("mmlu"):
        two_models(run, fast, full)
    if run.wants("nine"):
        nine_models(run, fast, full)
    if run.wants("latency"):
        latency(run, fast, full)
    if run.wants("peers") and full:
        beside_llmrouter(run, lambda: _nine_policy(full), full[-1])
        beside_routellm(run, lambda: KernelQuality(PromptFeatures(embedders=full)), lambda: _uncached(fast), full[-1])


def _nine_policy(used: list[Embedder]) -> RoutePolicy:
    scorer = KernelQuality(PromptFeatures(embedders=used), n_landmarks=2000, second_stage=False)
    return RoutePolicy("kernel", scorer, n_settings=60)


def _uncached(used: list[Embedder]) -> KernelQuality:
    """A router that embeds every prompt, for timing."""
    return KernelQuality(PromptFeatures(embedders=[e.embedder if isinstance(e, Remembered) else e for e in used]))


def two_models(run: Run, fast: list[Embedder], full: list[Embedder]) -> None:
    """Route MMLU between two models with 1,500 labels and with all labels of the fitting split."""
    table = mmlu(run)
    seeds = range(2 if run.quick else 5)
    for labels in (1500, 0):
        routers: dict[str, Callable[[], QualityScorer]] = {
            "kernel, encoder": lambda: KernelQuality(PromptFeatures(embedders=full)),
            "kernel, static": lambda: KernelQuality(PromptFeatures(embedders=fast)),
            "nearest neighbours": lambda: NeighbourQuality(features=PromptFeatures(0, 0.1, full)),
        }
        if labels:
            routers["similarity-weighted Elo"] = lambda: SimilarityElo(features=PromptFeatures(0, 0.1, full))
            routers["matrix factorisation"] = lambda: MatrixFactorisation(features=PromptFeatures(embedders=full))
        found: dict[str, list[tuple[float, float, float]]] = {}
        for seed in seeds:
            fit, _, test = table.split(_SHARES, seed=seed)
            taught = fit.subset(range(labels)) if labels else fit
            rest = fit.queries[labels:] if labels else ()
            weak, strong = test.scores.T
            coin = np.random.default_rng(seed).random(test.n_queries)
            for name, score in (("random", coin), ("oracle", strong - weak)):
                found.setdefault(name, []).append(_measures(score, weak, strong))
            for name, make in routers.items():
                router = make()
                started = time.perf_counter()
                if isinstance(router, KernelQuality):
                    router.fit(taught.queries, taught.scores, taught.models, unlabelled=rest)
                else:
                    router.fit(taught.queries, taught.scores, taught.models)
                seconds = time.perf_counter() - started
                predicted = router.predict(test.queries)
                found.setdefault(name, []).append(_measures(predicted[:, 1] - predicted[:, 0], weak, strong))
                print(f"seed {seed} {labels or 'all'} {name}: {found[name][-1]} fit {seconds:.1f} s", flush=True)
        _mmlu_figures(run, labels, found, len(seeds))


def _measures(score: NDArray[np.float64], weak: NDArray[np.float64], strong: NDArray[np.float64]) -> tuple[float, ...]:
    return apgr(score, weak, strong), cpt(score, weak, strong, 0.8), calls_for(score, weak, strong, 0.95)


def _mmlu_figures(run: Run, labels: int, found: dict[str, list[tuple[float, float, float]]], n_seeds: int) -> None:
    for name, rows in found.items():
        a, c, s = np.mean(rows, axis=0)
        print(
            f"MMLU {labels or 'all'} labels  {name:26s} APGR {a:.3f}  CPT(80) {c:.1%}  calls for 95 % of strong {s:.1%}"
        )
    rows = np.array(found["kernel, encoder"])
    static = np.array(found["kernel, static"]).mean(axis=0)
    knn = float(np.mean([row[0] for row in found["nearest neighbours"]]))
    common = {"n": 2808, "seeds": n_seeds, "nearest_neighbours": knn}
    peer = {"peer": "RouteLLM (arXiv:2406.18665, table 2)", "peer_source": "published"}
    low, high = interval(rows[:, 0])
    if labels:
        run.figure(
            "mmlu_apgr_1500_labels",
            rows[:, 0].mean(),
            unit="APGR",
            better="higher",
            low=low,
            high=high,
            peer_value=0.603,
            static=float(static[0]),
            target=0.70,
            **common,
            **peer,
        )
        low, high = interval(rows[:, 1])
        run.figure(
            "mmlu_cpt80_1500_labels",
            rows[:, 1].mean(),
            unit="share of strong calls",
            better="lower",
            low=low,
            high=high,
            peer_value=0.703,
            static=float(static[1]),
            target=0.55,
            **common,
            **peer,
        )
        return
    run.figure(
        "mmlu_apgr_all_labels",
        rows[:, 0].mean(),
        unit="APGR",
        better="higher",
        low=low,
        high=high,
        static=float(static[0]),
        target=0.75,
        **common,
    )
    low, high = interval(rows[:, 2])
    run.figure(
        "mmlu_calls_for_95",
        rows[:, 2].mean(),
        unit="share of strong calls",
        better="lower",
        low=low,
        high=high,
        static=float(static[2]),
        target=0.35,
        **common,
    )


def nine_models(run: Run, fast: list[Embedder], full: list[Embedder]) -> None:
    """Route among nine models on the fixed test split; fitting queries that are in it too are left out."""
    train, _ = llmrouter9(run, "train")
    test, _ = llmrouter9(run, "test")
    held = set(test.queries)
    clean = train.subset([i for i, query in enumerate(train.queries) if query not in held])
    print(f"{train.n_queries - clean.n_queries} of {train.n_queries} fitting queries are test queries too: left out.")
    best = int(train.scores.mean(axis=0).argmax())
    best_score, best_cost = float(test.scores[:, best].mean()), float(test.costs[:, best].mean())
    print(f"best single {test.models[best]} {best_score:.3f}, oracle {test.scores.max(axis=1).mean():.3f}")
    for name, fitted in (("published split, shared queries kept", train), ("no shared query", clean)):
        score, low, high, spend, share = _nine(fitted, test, full or fast, best_score, best_cost)
        print(f"{name}: {score:.3f} at {spend / best_cost:.0%} of best single's cost; its score at {share:.0%}")
        if fitted is train:
            kept = (score, share)
    knn = NeighbourQuality(features=PromptFeatures(0, 0.1, full)).fit(clean.queries, clean.scores, clean.models)
    near = test.scores[np.arange(test.n_queries), knn.predict(test.queries).argmax(axis=1)].mean()
    ridge = _tfidf_ridge(clean, test)
    print(f"neighbours {near:.3f}; TF-IDF + ridge {ridge:.3f} (shared queries {_tfidf_ridge(train, test):.3f})")
    shared = {"n": test.n_queries, "nearest_neighbours": float(near)}
    run.figure(
        "llmrouter9_score",
        score,
        unit="mean score",
        better="higher",
        low=low,
        high=high,
        cost_share=spend / best_cost,
        peer="TF-IDF + ridge, same clean split",
        peer_value=ridge,
        peer_source="measured",
        best_single=best_score,
        with_shared_queries=kept[0],
        target=0.62,
        **shared,
    )
    run.figure(
        "llmrouter9_cost_at_best_single",
        share,
        unit="share of best single's cost",
        better="lower",
        with_shared_queries=kept[1],
        target=0.35,
        **shared,
    )


def _nine(
    fitted: ReplyTable, test: ReplyTable, used: list[Embedder], best_score: float, best_cost: float
) -> tuple[float, float, float, float, float]:
    learn, tune = fitted.split((0.8, 0.2), seed=0)
    policy = _nine_policy(used)
    policy.fit(learn)
    scores, costs = policy.predicted(tune.queries)
    rows = np.arange(tune.n_queries)
    single = int(learn.scores.mean(axis=0).argmax())
    goal = float(tune.scores[:, single].mean())
    prices = policy.settings(tune)
    runs = [value_minus_price(scores, costs, price) for price in prices]
    quality = np.array([tune.scores[rows, r].mean() for r in runs])
    spend = np.array([tune.costs[rows, r].mean() for r in runs])
    # A price below 0 only traces the curve to its dear end: it would pay for nothing.
    within = np.flatnonzero((spend <= tune.costs[:, single].mean()) & (np.array(prices) >= 0))
    top = int(within[quality[within].argmax()])
    reaching = np.flatnonzero(quality >= goal)
    cheap = int(reaching[spend[reaching].argmin()]) if reaching.size else top
    policy.fit(fitted)
    scores, costs = policy.predicted(test.queries)
    at = np.arange(test.n_queries)
    chosen = value_minus_price(scores, costs, prices[top])
    values = test.scores[at, chosen]
    low, high = bootstrap(values)
    frugal = value_minus_price(scores, costs, prices[cheap])
    reached = float(test.scores[at, frugal].mean())
    share = float(test.costs[at, frugal].mean()) / best_cost
    print(f"  setting chosen to match the best single: {reached:.3f} (best single {best_score:.3f}) at {share:.0%}")
    if reached < best_score:
        share = _share_on_curve(test, scores, costs, prices, best_score, best_cost)
    return float(values.mean()), low, high, float(test.costs[at, chosen].mean()), share


def _share_on_curve(
    test: ReplyTable,
    scores: NDArray[np.float64],
    costs: NDArray[np.float64],
    prices: list[float],
    goal: float,
    best_cost: float,
) -> float:
    """Least cost share on the test curve that reaches the goal; NaN when none does."""
    at = np.arange(test.n_queries)
    shares = []
    for price in prices:
        chosen = value_minus_price(scores, costs, price)
        if test.scores[at, chosen].mean() >= goal:
            shares.append(float(test.costs[at, chosen].mean()) / best_cost)
    return min(shares, default=float("nan"))


def _tfidf_ridge(fitted: ReplyTable, test: ReplyTable) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2))
    x = words.fit_transform(fitted.queries)
    predicted = Ridge(alpha=10).fit(x, fitted.scores).predict(words.transform(test.queries))
    return float(test.scores[np.arange(test.n_queries), predicted.argmax(axis=1)].mean())


def latency(run: Run, fast: list[Embedder], full: list[Embedder]) -> None:
    """Time the router on 500-token prompts, one at a time, on one core, and its fitting."""
    from threadpoolctl import threadpool_limits

    table = mmlu(run)
    n = 4000 if run.quick else table.n_queries
    part = table.subset(range(n)) if run.quick else table
    prompts = long_prompts(table.queries)
    with threadpool_limits(1):
        router = _uncached(fast)
        started = time.perf_counter()
        router.fit(part.queries, part.scores, [WEAK, STRONG])
        fitting = time.perf_counter() - started
    times = milliseconds(router, prompts)
    few = table.subset(range(1500))
    with_encoder = milliseconds(_uncached(full).fit(few.queries, few.scores, [WEAK, STRONG]), prompts)
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
