"""Proxy tuning on a task: topics of news, by a small model tuned on them and a large one that was not."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.figures import Run, bootstrap
from pilotfish.decoding.bridge import in_vocabulary
from pilotfish.decoding.fusion import ProxyTuning
from pilotfish.decoding.vocabulary import same_vocabulary
from pilotfish.models import catalog
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import LogProbs, Tokenizer
from pilotfish.training.tuning import save_model, tune

__all__ = ["ALPHAS", "TOPICS", "expected", "news_topics", "topics", "trained"]

TOPICS = {"1": " world", "2": " sport", "3": " business", "4": " technology"}
# Part of the benchmark, its figure, small model and large: across families, and within one.
PAIRS = (
    ("topics_across", "proxy_tuning", "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"),
    ("topics_within", "proxy_tuning_within", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"),
)
ALPHAS = (0.5, 1.0, 1.5)


def trained(run: Run, name: str, train: Callable[[], TransformersModel]) -> TransformersModel:
    """A model that is trained once and kept in the cache beside the others; quick runs train their own."""
    folder = catalog.cache_dir("x").parent.parent / "benchmarks" / f"fusion-{name}"
    if not run.quick and folder.exists():
        return TransformersModel(folder)
    start = time.perf_counter()
    made = train()
    print(f"{name} trained in {time.perf_counter() - start:.0f} s", flush=True)
    if not run.quick:
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_model(made, folder)
    return made


def topics(run: Run) -> None:
    """Share of the directly tuned large model's gain, in log-probability of the topic and in accuracy."""
    wanted = [pair for pair in PAIRS if run.wants_long(pair[0])]
    if not wanted:
        return
    rng = np.random.default_rng(0)
    n_fit, n_weigh, n_test = (60, 20, 20) if run.quick else (400, 60, 150)
    known, tested = news_topics(run, "dev", rng, n_fit + n_weigh), news_topics(run, "test", rng, n_test)
    texts = known[n_fit:] + tested
    right = np.array([list(TOPICS.values()).index(topic) for _, topic in texts])
    for _, figure, small, large in wanted:
        tokenizer = TransformersModel(large).tokenizer
        words = [tokenizer.encode(topic)[0] for topic in TOPICS.values()]
        logs: dict[str, LogProbs] = {}
        for role, name, is_tuned in (
            ("base", large, False), ("tuned", large, True), ("expert", small, True), ("anti_expert", small, False),
        ):  # fmt: skip
            make = partial(_tuned, run, name, known[:n_fit]) if is_tuned else partial(TransformersModel, name)
            # No name is kept for the model: two large ones don't fit beside each other.
            logs[role] = expected(make(), tokenizer, [asked for asked, _ in texts])
            gc.collect()
        weigh, test = slice(0, n_weigh), slice(n_weigh, None)
        fused = {alpha: ProxyTuning(alpha).fuse(logs)[:, words] for alpha in ALPHAS}
        rows = np.arange(right.size)
        alpha = max(ALPHAS, key=lambda a: fused[a][rows, right][weigh].mean())
        ways = {**{role: values[:, words] for role, values in logs.items()}, "proxy": fused[alpha]}
        gains = {name: values[rows, right][test].astype(float) for name, values in ways.items()}
        hits = {name: (values.argmax(axis=1) == right)[test].astype(float) for name, values in ways.items()}
        for name in ways:
            print(f"{large}, {name:12s} log-prob {gains[name].mean():7.3f}  accuracy {hits[name].mean():.3f}")
        across = not same_vocabulary(TransformersModel(small).tokenizer, tokenizer)
        common = {"n": n_test, "alpha": alpha, "expert": small, "large": large, "cross_vocabulary": across}
        for measure, by_way in (("", gains), ("_accuracy", hits)):
            whole = (by_way["tuned"] - by_way["base"]).mean()
            closed = (by_way["proxy"] - by_way["base"]) / whole
            low, high = bootstrap(closed)
            run.figure(
                f"{figure}_gap_closed{measure}", float(closed.mean()), unit="share", better="higher",
                low=low, high=high, floor=0.6, **common, means={name: float(v.mean()) for name, v in by_way.items()},
            )  # fmt: skip


def _tuned(run: Run, name: str, examples: Sequence[tuple[str, str]]) -> TransformersModel:
    n_steps = 10 if run.quick else 60 if "135m" in name else 30
    how: dict[str, Any] = {"n_steps": n_steps, "max_tokens": 96, "rank": 8, "learning_rate": 5e-4}
    return trained(run, f"topics-{name}", lambda: tune(TransformersModel(name), examples, **how))


def expected(model: TransformersModel, tokenizer: Tokenizer, texts: Sequence[str]) -> LogProbs:
    """Log-probabilities of the token after each text, (n, n_vocabulary), in the tokenizer's vocabulary."""
    read = in_vocabulary(model, tokenizer)
    return np.concatenate(
        [read.session().extend(tokenizer.encode(text), 1).log_probs()[:, : tokenizer.n_vocabulary] for text in texts]
    )


def news_topics(run: Run, part: str, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    """Questions for the topic of news, and the right answers; drawn without replacement."""
    rows = list(run.rows(f"ag_news/{part}.jsonl.gz"))
    picked = [rows[i] for i in rng.permutation(len(rows))[:n]]
    return [(f"News: {row['content'][:250]}\nTopic:", TOPICS[str(row["label"])]) for row in picked]
