"""Examples chosen by a small language model, by its gradients and by its context: tuned on them, beside random ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.decoding.topics import TOPICS, expected, news_topics
from benchmarks.figures import Run
from pilotfish.curation.selection import in_context_worth
from pilotfish.errors import DownloadError, MissingExtraError
from pilotfish.methods.finetuning_data import less
from pilotfish.models import catalog
from pilotfish.models.transformers import TransformersModel
from pilotfish.training.tuning import tune

__all__ = ["worth"]

NAME = "smollm2-135m-instruct"
LEARNED = {"n_steps": 30, "batch_size": 4, "rank": 8, "learning_rate": 5e-4}
Example = tuple[str, str]


def worth(run: Run) -> None:
    """Choose a twentieth of four tasks by LESS, and a tenth of examples of which three in ten are wrong in context."""
    try:
        catalog.resolve(NAME)
        model = TransformersModel(NAME)
    except (DownloadError, MissingExtraError) as error:
        print(f"no language model: {error}")
        return
    rng = np.random.default_rng(0)
    n = 20 if run.quick else 100
    news = news_topics(run, "dev", rng, 2 * n + 16)
    tested = news_topics(run, "test", rng, 20 if run.quick else 200)
    if run.wants("less"):
        _gradients(run, model, [news[:n], *_others(run, rng, n)], news[-16:], tested)
    if run.wants("data_whisperer"):
        _context(run, model, news[: 2 * n], tested, rng)


def _gradients(
    run: Run, model: TransformersModel, tasks: list[list[Example]], target: list[Example],
    tested: list[Example],
) -> None:  # fmt: skip
    pool = [example for task in tasks for example in task]
    from_target = np.arange(len(pool)) < len(tasks[0])
    k = max(len(pool) // 20, 4)
    started = time.process_time()
    chosen = less(NAME, pool, target, k)
    took = time.process_time() - started
    scores, tuning = _tuned(run, model, pool, chosen, tested)
    share = float(from_target[chosen].mean())
    print(f"LESS: {share:.0%} of picks from the target's task, chosen in {took:.0f} s, {scores}", flush=True)
    run.figure(
        "less_in_target",
        share,
        unit="share of picks from the target's task",
        better="higher",
        n=len(pool),
        at_random=float(from_target.mean()),
        seconds=took,
        seconds_of_tuning=tuning,
    )
    _beside_random(run, "less_vs_random_points", scores, tested)


def _context(
    run: Run, model: TransformersModel, news: list[Example], tested: list[Example],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    wrong = rng.random(len(news)) < 0.3
    pool = [
        (asked, str(rng.choice([other for other in TOPICS.values() if other != topic])) if bad else topic)
        for (asked, topic), bad in zip(news, wrong, strict=True)
    ]
    started = time.process_time()
    value = in_context_worth(NAME, [(a, w.strip()) for a, w in pool])
    took = time.process_time() - started
    chosen = np.argsort(-value, kind="stable")[: max(len(pool) // 10, 4)]
    scores, tuning = _tuned(run, model, pool, chosen, tested)
    print(
        f"Data Whisperer: {wrong[chosen].mean():.0%} of picks wrong, chosen in {took:.0f} s where tuning on all takes "
        f"{tuning:.0f}, {scores}",
        flush=True,
    )
    _beside_random(
        run,
        "data_whisperer_vs_random_points",
        scores,
        tested,
        wrong_among_chosen=float(wrong[chosen].mean()),
        wrong_in_pool=float(wrong.mean()),
        seconds=took,
        seconds_of_tuning=tuning,
    )


def _beside_random(run: Run, figure: str, scores: dict[str, float], tested: list[Example], **more: float) -> None:
    points = 100 * (scores["chosen"] - scores["random"])
    run.figure(figure, points, unit="points of accuracy", better="higher", n=len(tested), accuracy=scores, **more)


def _tuned(
    run: Run, model: TransformersModel, pool: list[Example], chosen: np.ndarray, tested: list[Example]
) -> tuple[dict[str, float], float]:
    """Accuracy of the model as it is and tuned on examples chosen, random (three draws) and all; CPU-seconds of all."""
    rng = np.random.default_rng(2)
    draws = [rng.choice(len(pool), chosen.size, replace=False) for _ in range(1 if run.quick else 3)]
    how = LEARNED | ({"n_steps": 4} if run.quick else {})

    def accuracy(rows: Sequence[int]) -> float:
        return _right(tune(model, [pool[i] for i in rows], **how), tested)

    started = time.process_time()
    whole = tune(model, pool, **(how | {"n_steps": len(pool) // LEARNED["batch_size"]}))
    seconds = time.process_time() - started
    scores = {
        "as it is": _right(model, tested),
        "chosen": accuracy(chosen),
        "random": float(np.mean([accuracy(draw) for draw in draws])),
        "all": _right(whole, tested),
    }
    return {name: round(value, 4) for name, value in scores.items()}, seconds


def _right(model: TransformersModel, tested: list[Example]) -> float:
    """Share of news whose topic has the likeliest first token."""
    topics = list(TOPICS.values())
    first = [model.tokenizer.encode(topic)[0] for topic in topics]
    said = expected(model, model.tokenizer, [asked for asked, _ in tested])[:, first].argmax(axis=1)
    return float(np.mean([topics[i] == topic for i, (_, topic) in zip(said, tested, strict=True)]))


def _others(run: Run, rng: np.random.Generator, n: int) -> list[list[Example]]:
    """Examples of other tasks: praise or blame, whether one sentence follows from another, school mathematics."""
    reviews, pairs, sums = (
        [rows[i] for i in rng.permutation(len(rows))[:n]]
        for rows in (
            list(run.rows(path)) for path in ("sst2/train.jsonl.gz", "rte/rte1-3.jsonl.gz", "gsm8k/train.jsonl.gz")
        )
    )
    return [
        [(f"Review: {row['text']}\nSentiment:", " positive" if row["label"] else " negative") for row in reviews],
        [(f"{row['premise']}\nSo {row['hypothesis']}\nTrue or false:", f" {_follows(row)}") for row in pairs],
        [(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in sums],
    ]


def _follows(row: dict[str, str]) -> str:
    # The first set says so in other words than the later two.
    return "true" if row.get("value", row.get("entailment")) in ("TRUE", "YES") else "false"
