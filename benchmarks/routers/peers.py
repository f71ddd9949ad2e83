"""llmrouter-lib and RouteLLM beside Pilotfish: the same labels, the same sentence vectors, the same test queries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run, bootstrap
from benchmarks.outcomes import STRONG, WEAK, first_scores, interval, llmrouter9, mmlu
from benchmarks.routers.timing import long_prompts, milliseconds
from benchmarks.serving.peers import interpreter, version
from pilotfish.protocols import Embedder
from pilotfish.route.curves import apgr
from pilotfish.route.policies import RoutePolicy
from pilotfish.rules import value_minus_price
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.scorers.quality import QualityScorer
from pilotfish.traffic.table import ReplyTable

__all__ = ["beside_llmrouter", "beside_routellm"]

SCRIPTS = Path(__file__).parent
N_LABELS = 1500
# Learned parts come first: the others are there to read them by.
LLMROUTER = ("knn", "svm", "mlp", "mf", "hybrid", "graph", "elo", "smallest", "largest")
Arrays = dict[str, NDArray[np.float32]]


def asked(peer: str, job: dict[str, Any], arrays: Arrays) -> dict[str, Any] | None:
    """Run a peer's script on one core; None, and one line that says so, where it cannot be had or fails."""
    python = interpreter(peer)
    if python is None:
        print(f"{peer} cannot be installed here: it is not measured.")
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        for path, array in arrays.items():
            (folder / path).parent.mkdir(exist_ok=True)
            np.save(folder / path, array)
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": name}
        environ |= {"PYTHONWARNINGS": "ignore", "NO_PROXY": "127.0.0.1"}
        try:
            done = subprocess.run(
                [python, SCRIPTS / f"{peer}_peer.py", folder],
                capture_output=True,
                text=True,
                check=True,
                env=environ,
                cwd=folder,
                timeout=1800,
            )
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
            print(f"{peer} failed and is not measured: {str(getattr(error, 'stderr', None) or error)[-300:]!r}")
            return None
    for router, reason in found["failed"].items():
        print(f"{peer} {router} failed and is not measured: {reason}", file=sys.stderr)
    return found


def beside_llmrouter(run: Run, make_policy: Callable[[], RoutePolicy], embedder: Embedder) -> None:
    """Nine models: what each of its routers scores and spends, beside Pilotfish at the same mean cost."""
    rows = list(run.rows("llmrouter9/train.jsonl.gz"))
    train = llmrouter9(run, "train")
    test = llmrouter9(run, "test")
    about = json.loads((run.data / "llmrouter9/default_llm.json").read_text(encoding="utf-8"))
    llms = {name: entry for name, entry in about.items() if name in train.models}
    held = set(test.queries)
    if run.quick:
        test = test.subset(range(0, test.n_queries, 3))
    best = int(train.scores.mean(axis=0).argmax())
    best_cost = float(test.costs[:, best].mean())
    step = 10 if run.quick else 1
    splits = {
        "no shared query": [i for i in range(0, len(rows), step) if rows[i]["query"] not in held],
        "published split": list(range(0, len(rows), step)),
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, kept in splits.items():
        job = {
            "train": [[rows[i]["query"], rows[i]["scores"]] for i in kept],
            "test": list(test.queries),
            "llms": llms,
            "routers": LLMROUTER,
        }
        arrays = {
            "train.npy": embedder.embed([rows[i]["query"] for i in kept]),
            "test.npy": embedder.embed(test.queries),
            "llms.npy": embedder.embed([entry["feature"] for entry in llms.values()]),
        }
        peer = asked("llmrouter", job, arrays)
        if peer is None:
            return
        policy = make_policy().fit(train.subset(kept))
        curve = _curve(policy, test)
        print(f"llmrouter9, {name}, {len(kept)} fitting queries: score and cost share of the best single model")
        for router, chosen in peer["choices"].items():
            row = _against(test, [test.models.index(model) for model in chosen], curve)
            found.setdefault(router, {})[name] = row
            print(
                f"  {router:9s} {row['peer']:.3f} at {row['peer_cost'] / best_cost:4.0%}  pilotfish {row['ours']:.3f}"
                f" at {row['cost'] / best_cost:4.0%}  gain {row['gain'][0]:+.3f} to {row['gain'][1]:+.3f}"
                f"  fitted and asked in {peer['seconds'][router]:.1f} s"
            )
    vectors = "its text encoder (a Longformer from a hub) replaced by " + _said(run)
    for router, by_split in found.items():
        if len(by_split) < len(splits):
            continue
        row, shared = by_split["no shared query"], by_split["published split"]
        run.figure(
            f"llmrouter9_score_llmrouter_{router}",
            row["ours"],
            unit="mean score at the peer's mean cost or less",
            better="higher",
            n=test.n_queries,
            low=row["low"],
            high=row["high"],
            peer=f"{version('llmrouter')} {router}",
            peer_value=row["peer"],
            peer_source="measured",
            cost_share=row["cost"] / best_cost,
            peer_cost_share=row["peer_cost"] / best_cost,
            gain_low=row["gain"][0],
            gain_high=row["gain"][1],
            with_shared_queries=shared["ours"],
            peer_with_shared_queries=shared["peer"],
            peer_cost_share_with_shared_queries=shared["peer_cost"] / best_cost,
            note=vectors,
        )


def _said(run: Run) -> str:
    return "the static vectors of the quick run" if run.quick else "the all-minilm-l6-v2 vectors that Pilotfish reads"


def _curve(policy: RoutePolicy, test: ReplyTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores and costs of every test query at every price, from cheap to dear; no score is looked at to find prices."""
    scores, costs = policy.predicted(test.queries)
    prices = [price for price in policy.settings(test) if price > 0] + [0.0]
    rows = np.arange(test.n_queries)
    chosen = [value_minus_price(scores, costs, price) for price in prices]
    values = np.array([test.scores[rows, c] for c in chosen])
    spent = np.array([test.costs[rows, c] for c in chosen])
    order = np.argsort(spent.mean(axis=1), kind="stable")
    return values[order], spent[order]


def _against(
    test: ReplyTable, chosen: list[int], curve: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> dict[str, Any]:
    """A peer's choices, and the mix of two neighbouring prices that spends as much, or the dear end of the curve."""
    rows = np.arange(test.n_queries)
    peer, cost = test.scores[rows, chosen], float(test.costs[rows, chosen].mean())
    values, spent = curve
    means = spent.mean(axis=1)
    high = min(int(np.searchsorted(means, cost)), means.size - 1)
    low = max(high - 1, 0)
    width = means[high] - means[low]
    share = float(np.clip((cost - means[low]) / width, 0, 1)) if width > 0 else 1.0
    ours = (1 - share) * values[low] + share * values[high]
    interval_low, interval_high = bootstrap(ours)
    return {
        "ours": float(ours.mean()),
        "low": interval_low,
        "high": interval_high,
        "cost": (1 - share) * float(means[low]) + share * float(means[high]),
        "peer": float(peer.mean()),
        "peer_cost": cost,
        "gain": bootstrap(ours - peer),
    }


def beside_routellm(
    run: Run, make_router: Callable[[], KernelQuality], make_fast: Callable[[], QualityScorer], embedder: Embedder
) -> None:
    """MMLU, two models, 1,500 labels: APGR of its routers fitted on the same labels, and the time of a decision."""
    table = mmlu(run)
    prompts = long_prompts(table.queries)
    splits, arrays, ours, tests = [], {"timed.npy": embedder.embed(prompts)}, [], []
    for seed in range(2 if run.quick else 3):
        fit, _, test = table.split((0.7, 0.1, 0.2), seed=seed)
        if run.quick:
            test = test.subset(range(250))
        taught = fit.subset(range(N_LABELS))
        weak, strong = taught.scores.T
        winners = np.where(strong > weak, "model_a", np.where(weak > strong, "model_b", "tie"))
        splits.append({"learn": taught.queries, "winners": winners.tolist(), "test": test.queries})
        arrays[f"{seed}/learn.npy"], arrays[f"{seed}/test.npy"] = (
            embedder.embed(taught.queries),
            embedder.embed(test.queries),
        )
        router = make_router().fit(fit.queries, first_scores(fit, N_LABELS), [WEAK, STRONG])
        predicted = router.predict(test.queries)
        ours.append(apgr(predicted[:, 1] - predicted[:, 0], *test.scores.T))
        tests.append(test)
        if seed == 0:
            fast = make_fast().fit(taught.queries, taught.scores, [WEAK, STRONG])
    peer = asked("routellm", {"splits": splits, "timed": prompts}, arrays)
    if peer is None:
        return
    times = milliseconds(fast, prompts)
    call = float(np.median(peer["ms"]["embedding call"]))
    print(f"MMLU, {N_LABELS} labels, {len(tests)} seeds: pilotfish APGR {np.mean(ours):.3f}, {np.median(times):.2f} ms")
    low, high = interval(ours)
    quick_low, quick_high = bootstrap(np.array(times))
    for name, scores in peer["scores"].items():
        if name in peer["failed"]:
            continue
        found = [apgr(score, *test.scores.T) for score, test in zip(scores, tests, strict=True)]
        spent = float(np.median(peer["ms"][name]))
        print(
            f"  RouteLLM {name:10s} APGR {np.mean(found):.3f}, {spent:.2f} ms, fitted {peer['fit_seconds'][name]:.1f} s"
        )
        run.figure(
            f"mmlu_apgr_1500_labels_routellm_{name}",
            float(np.mean(ours)),
            unit="APGR",
            better="higher",
            n=tests[0].n_queries,
            seeds=len(tests),
            low=low,
            high=high,
            peer=f"{version('routellm')} {name}",
            peer_value=float(np.mean(found)),
            peer_source="measured",
            note="its embeddings (a hosted model's) replaced by " + _said(run),
        )
        run.figure(
            f"router_p50_ms_routellm_{name}",
            float(np.median(times)),
            unit="ms per 500-token prompt, one core",
            better="lower",
            n=len(times),
            low=quick_low,
            high=quick_high,
            peer=f"{version('routellm')} {name}",
            peer_value=spent,
            peer_source="measured",
            peer_embedding_call_ms=0.0 if name == "random" else call,
            note=f"{N_LABELS} labels; its embedding call answered at once by a local server, ours embeds the prompt",
        )
