"""Mixtures of domains: held-out loss of a small language model trained on each, beside uniform and natural weights."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks.figures import Run, bootstrap
from pilotfish.curation import mixing
from pilotfish.curation.mixing import ByteModel, held_back
from pilotfish.curation.scaling import autoscale
from pilotfish.methods.pretraining_data import doremi, mixing_agent

N_WINDOWS = 256
N_ROUNDS = 6
# Half of the windows a step and twice the rate reach the same loss at the same step in half of the time.
LARGE = {"batch": 12, "rate": 6e-3}


@dataclass(frozen=True)
class Cut:
    """Text of domains to train on and held out; what a method may look at beside them is cut from the first."""

    train: dict[str, str]
    held: list[str]
    seen: dict[str, str]
    seen_held: list[str]

    @classmethod
    def of(cls, domains: dict[str, str]) -> Cut:
        train = {name: held_back(text, 9)[0] for name, text in domains.items()}
        return cls(
            train,
            [held_back(text, 9)[1] for text in domains.values()],
            {name: held_back(text, 4)[0] for name, text in train.items()},
            [held_back(text, 4)[1] for text in train.values()],
        )


def main(run: Run) -> None:
    eight, three = Cut.of(texts(run)), Cut.of(kinds(run))
    steps, seeds = (100, range(1)) if run.quick else (500, range(3))
    if run.wants("doremi"):
        _doremi(run, eight.train, eight.held, steps, seeds)
    if run.wants("autoscale"):
        _autoscale(run, "autoscale_loss_ratio", three, 400 if run.quick else 4000, seeds)
    if run.wants_long("autoscale_eight"):
        _autoscale(run, "autoscale_eight_loss_ratio", eight, 400 if run.quick else 4000, range(1))
    if run.wants("agent"):
        _agent(run, "mixing_agent_loss_ratio", three, steps, seeds)
    if run.wants_long("agent_eight"):
        # What there is to gain over even weights is within chance: more seeds.
        _agent(run, "mixing_agent_eight_loss_ratio", eight, steps, range(8))
    if run.wants("presence"):
        _presence(run, eight.train, eight.held, steps, seeds)


def _trained(train: dict[str, str], mixture: np.ndarray, steps: int, held: list[str], seed: int) -> np.ndarray:
    return ByteModel(train, seed=100 + seed).train(mixture, steps).held_out(held, N_WINDOWS)


def _controls(train: dict[str, str]) -> dict[str, np.ndarray]:
    natural = np.array([len(text) for text in train.values()], dtype=float)
    return {"uniform": np.full(len(train), 1 / len(train)), "natural": natural / natural.sum()}


def _doremi(run: Run, train: dict[str, str], held: list[str], steps: int, seeds: range) -> None:
    """Loss of each domain, and its excess over what a model of the same size reaches in four times the steps."""
    found: dict[str, list[np.ndarray]] = {}
    over: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        long = ByteModel(train, seed=200 + seed).train(np.ones(len(train)), 4 * steps).held_out(held, N_WINDOWS)
        for name, mixture in {**_controls(train), "doremi": doremi(train, steps, seed)}.items():
            losses = _trained(train, mixture, steps, held, seed)
            found.setdefault(name, []).append(losses)
            over.setdefault(name, []).append(losses - long)
            weights, each = ", ".join(f"{w:.2f}" for w in mixture), ", ".join(f"{loss:.3f}" for loss in losses)
            print(
                f"seed {seed} {name:8s} worst {losses.max():.3f} mean {losses.mean():.3f} worst excess "
                f"{(losses - long).max():.3f} ({each}) weights {weights}",
                flush=True,
            )
    for figure, rows, measure in (
        ("worst_domain_loss_ratio", found, np.max),
        ("mean_loss_ratio", found, np.mean),
        ("worst_domain_excess_ratio", over, np.max),
    ):
        values = {name: np.array([measure(losses) for losses in of]) for name, of in rows.items()}
        ratios = values["doremi"] / values["uniform"]
        low, high = bootstrap(ratios)
        run.figure(
            figure,
            float(ratios.mean()),
            unit="DoReMi's over uniform's",
            better="lower",
            n=len(train),
            seeds=len(ratios),
            low=low,
            high=high,
            over_natural=float((values["doremi"] / values["natural"]).mean()),
            values={name: float(of.mean()) for name, of in values.items()},
        )


def _autoscale(run: Run, figure: str, cut: Cut, steps: int, seeds: range) -> None:
    """The mixture predicted for the large scale beside the one that is best at a quarter of it, both at the large one.

    What is fitted was trained without the blocks that the laws look at, and none of it saw those that score.
    """
    seen, seen_held, train, held = cut.seen, cut.seen_held, cut.train, cut.held
    small, cost = (steps / 16, steps / 4), 0
    ratios: dict[str, list[float]] = {}
    for seed in seeds:

        @lru_cache(None)
        def losses_of(amounts: tuple[float, ...], seed: int = seed) -> np.ndarray:
            nonlocal cost
            n_steps = max(1, round(sum(amounts)))
            cost += n_steps
            model = ByteModel(seen, seed=seed, **LARGE)
            return model.train(np.array(amounts), n_steps, averaged=0.25).held_out(seen_held, N_WINDOWS)

        def loss_at(amounts: np.ndarray, known: Callable[..., np.ndarray] = losses_of) -> np.ndarray:
            return known(tuple(amounts.tolist()))

        mixtures = {
            "predicted": autoscale(loss_at, small, steps, len(seen)),
            "best when small": autoscale(loss_at, small, small[1], len(seen)),
            "uniform": np.full(len(seen), 1 / len(seen)),
        }
        losses = {}
        for name, mixture in mixtures.items():
            model = ByteModel(train, seed=100 + seed, **LARGE).train(mixture, steps, averaged=0.25)
            losses[name] = float(model.held_out(held, N_WINDOWS).mean())
            ratios.setdefault(name, []).append(losses["predicted"] / losses[name])
        shown = {name: mixture.round(3).tolist() for name, mixture in mixtures.items()}
        print(f"seed {seed} AutoScale {losses} weights {shown}", flush=True)
    _ratio(run, figure, ratios["best when small"], "predicted mixture's loss over that of the small scale's best",
           n=len(seen), over_uniform=float(np.mean(ratios["uniform"])), each_over_uniform=ratios["uniform"],
           cost_in_large_trainings=cost / len(seeds) / steps)  # fmt: skip


def _agent(run: Run, figure: str, cut: Cut, steps: int, seeds: range) -> None:
    """A policy that changes the mixture along training, beside fixed mixtures."""
    seen, seen_held, train, held = cut.seen, cut.seen_held, cut.train, cut.held
    ratios: dict[str, list[float]] = {}
    for seed in seeds:
        policy = mixing_agent(seen, seen_held, seed=seed, n_rounds=N_ROUNDS, steps_a_round=steps // N_ROUNDS)
        learner = ByteModel(train, seed=100 + seed)
        used = learner.train_by(policy, seen_held, N_ROUNDS, steps // N_ROUNDS)
        loss = float(learner.held_out(held, N_WINDOWS).mean())
        fixed = {**_controls(train), "its mean": used.mean(axis=0)}
        losses = {name: float(_trained(train, m, steps, held, seed).mean()) for name, m in fixed.items()}
        print(
            f"seed {seed} mixing agent {loss:.3f} {losses} mean weights {fixed['its mean'].round(2).tolist()}",
            flush=True,
        )
        for name, other in losses.items():
            ratios.setdefault(name, []).append(loss / other)
    more = {f"over_{name.replace(' ', '_')}": float(np.mean(of)) for name, of in ratios.items() if name != "uniform"}
    unit = "its loss over that of a uniform mixture"
    _ratio(run, figure, ratios["uniform"], unit, n=len(train), **more)


def _presence(run: Run, train: dict[str, str], held: list[str], steps: int, seeds: range) -> None:
    """Weights of text and of noise, and loss on text, where every third of the domains is joined by noise."""
    ratios, weights = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        noise = {
            f"{name}, shuffled": "".join(rng.permutation(list(text[:200_000])))
            for name, text in list(train.items())[::2]
        }
        mixed = {**train, **noise}
        learner, given = mixing.presence(mixed, steps, seed=100 + seed)
        plain = ByteModel(mixed, seed=100 + seed).train(np.ones(len(mixed)), steps)
        ours, base = (float(model.held_out(held, N_WINDOWS).mean()) for model in (learner, plain))
        ratios.append(ours / base)
        weights.append(given[len(train) :].mean() / given[: len(train)].mean())
        print(
            f"seed {seed} PRESENCE {ours:.3f}, even weights {base:.3f}, noise over text {weights[-1]:.2f}", flush=True
        )
    _ratio(run, "presence_loss_ratio", ratios, "its loss on clean text over that of even weights",
           weight_of_noise_over_text=float(np.mean(weights)))  # fmt: skip


def _ratio(run: Run, figure: str, ratios: list[float], unit: str, n: int = 8, **more: Any) -> None:
    values = np.array(ratios)
    low, high = bootstrap(values) if values.size > 1 else (None, None)
    run.figure(
        figure, float(values.mean()), unit=unit, better="lower", n=n, seeds=values.size, low=low, high=high, **more
    )


def kinds(run: Run) -> dict[str, str]:
    """Three kinds of text that are learned at different paces: prose, rows of a table, sentences of 75 languages."""
    with gzip.open(run.data / "tabular/adult-test.csv.gz", "rt", encoding="utf-8") as table:
        rows = table.read()
    sentences = (row["text"] for row in run.rows("langid_lingua75/sentences.jsonl.gz"))
    return {
        "prose": "\n\n".join(row["text"] for row in run.rows("text_corpora/brown.jsonl.gz")),
        "tables": rows,
        "languages": "\n".join(text for text in sentences if len(text) > 30),
    }


def texts(run: Run) -> dict[str, str]:
    """Texts of domains of the shared data."""
    return {
        name: "\n\n".join(row[field] for row in run.rows(f"{path}.jsonl.gz"))
        for name, path, field in (
            ("web", "c4_sample/c4", "input"),
            ("forums", "text_corpora/webtext", "text"),
            ("news", "text_corpora/abc", "text"),
            ("books", "text_corpora/brown", "text"),
            ("speeches", "text_corpora/inaugural", "text"),
            ("chat", "text_corpora/nps_chat", "text"),
            ("scripture", "text_corpora/genesis", "text"),
            ("code and papers", "c4_sample/toy_pile", "contents"),
        )
    }
