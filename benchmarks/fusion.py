"""Fusion on real text: proxy tuning across vocabularies, its cost, context against memory, and what search gains.

The floor of a fused token is the sum of the models' own passes; a gate that asks the further models for a share of the
tokens costs that share of theirs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.decoding.conflict import context
from benchmarks.decoding.contrast import arithmetic, repetition
from benchmarks.decoding.topics import ALPHAS, topics, trained
from benchmarks.figures import Run, bootstrap
from pilotfish.decoding.bridge import in_vocabulary
from pilotfish.decoding.decoder import Decoder, fuse
from pilotfish.decoding.fused import Fused
from pilotfish.decoding.fusion import Product, ProxyTuning
from pilotfish.decoding.search import ChunkSearch, LogRatio
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import LogProbs, Model, WhiteBoxModel
from pilotfish.training.combination import LearnedCombination, combination_features
from pilotfish.training.tuning import prefer, train_adapter, tune
from pilotfish.types import Reply, Request

SMALL, LARGE = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"


def main(run: Run) -> None:
    small, large = TransformersModel(SMALL), TransformersModel(LARGE)

    if run.wants("proxy") or run.wants_long("comblm"):
        proxy(run, small, large)
    topics(run)
    if run.wants("overhead"):
        overhead(run, small, large)
    if run.wants("context"):
        context(run, small)
    if run.wants_long("repetition"):
        repetition(run, small, large)
    if run.wants_long("contrast_gsm8k"):
        arithmetic(run, small, large)
    if run.wants_long("ipa"):
        adapter(run, small)
    if run.wants_long("search"):
        search(run, small, large)
    if run.wants_long("truth"):
        truth(run, small)


def science(run: Run) -> tuple[list[str], list[str], list[str]]:
    """Abstracts of scifact, split by document: to tune on, to fit weights on, to test on."""
    texts = [row["text"] for row in islice(run.rows("scifact/corpus.jsonl.gz"), 2100)]
    n_test = 6 if run.quick else 24
    return texts[: 200 if run.quick else 800], texts[1000 : 1000 + n_test], texts[2000 : 2000 + n_test]


def places(models: dict[str, WhiteBoxModel], texts: Sequence[str], n_tokens: int) -> Any:
    """For each text every model's log-probabilities at each place, in the first one's vocabulary, and what came."""
    main = next(iter(models.values())).tokenizer
    for text in texts:
        tokens = main.encode(text)[:n_tokens]
        logs = {}
        for role, model in models.items():
            logs[role] = in_vocabulary(model, main).session().extend(tokens[:-1]).log_probs()[:, : main.n_vocabulary]
        yield logs, np.array(tokens[1:])


def proxy(run: Run, small: TransformersModel, large: TransformersModel) -> None:
    """Share of the directly tuned large model's gain in log-probability that proxy tuning gets; CombLM beside it."""
    fit, weigh, test = science(run)
    steps = 25 if run.quick else 30
    examples = [("", text) for text in fit]
    expert = trained(run, "expert", lambda: tune(small, examples, n_steps=steps, max_tokens=64, learning_rate=1e-4))
    tuned = trained(
        run, "tuned", lambda: tune(large, examples, n_steps=steps // 3, max_tokens=64, rank=8, learning_rate=3e-4)
    )
    models: dict[str, WhiteBoxModel] = {"base": large, "tuned": tuned, "expert": expert, "anti_expert": small}
    n_tokens = 64 if run.quick else 96
    rows: list[Any] = list(places(models, weigh, n_tokens))

    def gain(logs: LogProbs, tokens: Any) -> float:
        return float(logs[np.arange(tokens.size), tokens].mean())

    chosen = max(ALPHAS, key=lambda alpha: np.mean([gain(ProxyTuning(alpha).fuse(logs), at) for logs, at in rows]))
    features = np.concatenate([combination_features(logs["base"], logs["expert"]) for logs, _ in rows])
    pairs = [
        np.concatenate([logs[role][np.arange(at.size), at] for logs, at in rows]).astype(np.float64)
        for role in ("base", "expert")
    ]
    learned = LearnedCombination().fit(features, *pairs)
    one_weight = LearnedCombination(n_hidden=0).fit(features, *pairs)
    means: dict[str, list[float]] = {}
    for logs, at in places(models, test, n_tokens):
        two = {"base": logs["base"], "other": logs["expert"]}
        ways = {**logs, "proxy": ProxyTuning(chosen).fuse(logs)}
        ways |= {"CombLM": learned.fuse(two), "one weight": one_weight.fuse(two)}
        for name, values in ways.items():
            means.setdefault(name, []).append(gain(values, at))
    for name, values in means.items():
        print(f"{name:12s} perplexity {np.exp(-np.mean(values)):8.2f}")
    base, direct, ours = (np.array(means[name]) for name in ("base", "tuned", "proxy"))
    whole = (direct - base).mean()
    low, high = bootstrap((ours - base) / whole)
    run.figure(
        "proxy_abstracts_gap_closed", float((ours - base).mean() / whole), unit="share", better="higher", n=len(test),
        low=low, high=high, floor=0.6, alpha=chosen, expert=SMALL, large=LARGE, cross_vocabulary=True,
    )  # fmt: skip
    run.figure(
        "comblm_perplexity_ratio", float(np.exp(np.mean(means["base"]) - np.mean(means["CombLM"]))), unit="ratio",
        better="lower", n=len(test), one_weight=float(np.exp(np.mean(means["base"]) - np.mean(means["one weight"]))),
    )  # fmt: skip


def overhead(run: Run, small: TransformersModel, large: TransformersModel) -> None:
    """Seconds a token of a fused model beside the sum of its models' own, and with a gate beside the large one's."""
    import torch

    fusion = ProxyTuning(1.0)
    parts: dict[str, WhiteBoxModel] = {"base": large, "expert": small, "anti_expert": small}
    text = "Explain in simple words why the sky is blue."
    n_tokens = 24 if run.quick else 32
    request = Request.of(text, temperature=0, max_tokens=n_tokens)
    ways = {
        "large": Decoder(large), "small": Decoder(small), "fused": Decoder(Fused(fusion, parts)),
        "gated": Decoder(Fused(fusion, parts, gate=0.5)),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + (40 if run.quick else 150)
    while len(seconds["gated"]) < 5 and (not seconds["gated"] or time.perf_counter() < end):
        for name, decoder in ways.items():
            _, stats = decoder.answer(request)
            seconds[name].append(stats.seconds / max(1, stats.n_tokens))
    cost = {name: float(np.median(values)) for name, values in seconds.items()}
    print("  ".join(f"{name} {value * 1e3:.1f} ms a token" for name, value in cost.items()))
    own = cost["large"] + 2 * cost["small"]
    common = {"n": n_tokens, "n_threads": torch.get_num_threads()}
    run.figure("fusion_overhead", cost["fused"] / own, unit="ratio", better="lower", floor=1.1, **common)
    run.figure("gated_overhead", cost["gated"] / cost["large"], unit="ratio", better="lower", floor=1.4, **common)


def _politeness(texts: list[str]) -> list[float]:
    return [float(sum(text.lower().count(word) for word in ("good", "great", "best", "love"))) for text in texts]


def adapter(run: Run, small: TransformersModel) -> None:
    """Mean reward (cheerful words) of continuations with a trained adapter and without; perplexity kept."""
    prompts = ["The film was", "The food here is", "My day was", "The book is"]
    trained = train_adapter(
        small,
        small,
        prompts,
        _politeness,
        n_rounds=6 if run.quick else 40,
        n_samples=8,
        n_tokens=12,
        learning_rate=1e-5,
    )
    found = {}
    plain = fuse(fusion=Product(1.0), base=small, adapter=small)
    for name, decoder in (("plain", plain), ("adapter", fuse(fusion=Product(1.0), base=small, adapter=trained))):
        asked = ["The trip was", "The hotel is"]
        requests = [
            Request.of(text, temperature=1.0, max_tokens=12, seed=seed)
            for text in asked
            for seed in range(3 if run.quick else 20)
        ]
        found[name] = float(np.mean(_politeness([reply.text for reply in decoder.generate(requests)])))
    run.figure(
        "ipa_reward", found["adapter"], unit="words a reply", better="higher", n=6 if run.quick else 40,
        peer="the same product with the untrained adapter", peer_value=found["plain"], peer_source="measured",
    )  # fmt: skip


def search(run: Run, small: TransformersModel, large: TransformersModel) -> None:
    """Reward by a judge tuned on other preferences, and win rate: chunk search, best-of-n and beam search.

    Each is given four texts of the large model as long as the reply.
    """
    triples = []
    for row in run.rows("hh_rlhf/harmless_test.jsonl.gz"):
        head, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
        before, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
        if head == before and len(head) < 400:
            triples.append((head + "\n\nAssistant:", chosen, rejected))
    steps = 10 if run.quick else 80
    tuned, judge = (
        trained(
            run,
            f"preferred-{seed}",
            lambda seed=seed: prefer(  # type: ignore[misc]
                small, triples[300 * seed : 300 * (seed + 1)], n_steps=steps, max_tokens=128, seed=seed
            ),
        )
        for seed in (0, 1)
    )
    asked = [t[0].split("\n\nHuman:")[-1].removesuffix("\n\nAssistant:").strip() for t in triples[600:]]
    n, n_tokens = (2, 24) if run.quick else (24, 48)
    ways: dict[str, Model] = {
        "search": ChunkSearch(large, tuned, small, n_beams=2, n_draws=2, chunk=8),
        "best of 4": ChunkSearch(large, tuned, small, n_beams=1, n_draws=4, chunk=n_tokens),
        "beam search": _BeamSearch(large, 4),
    }
    told = LogRatio(judge, small)
    scores: dict[str, list[float]] = {name: [] for name in ways}
    for seed, text in enumerate(asked[:n]):
        request = Request.of(text, max_tokens=n_tokens, seed=seed)
        for name, way in ways.items():
            (reply,) = way.generate([request])
            scores[name] += told.score(request, [reply.text])
    print("  ".join(f"{name}: mean reward {np.mean(values):.3f}" for name, values in scores.items()))
    ours = np.array(scores.pop("search"))
    for name, values in scores.items():
        won = (ours > np.array(values)) + (ours == np.array(values)) / 2
        low, high = bootstrap(won)
        gained = bootstrap(ours - np.array(values))
        figure = "search_win_rate" if name == "best of 4" else f"search_win_rate_{name.replace(' ', '_')}"
        run.figure(
            figure, float(won.mean()), unit="share", better="higher", n=n, low=low, high=high, peer=name,
            peer_source="measured", reward=float(ours.mean()), peer_reward=float(np.mean(values)),
            reward_gain_low=gained[0], reward_gain_high=gained[1],
        )  # fmt: skip


class _BeamSearch:
    """The library's own beam search."""

    def __init__(self, model: TransformersModel, n_beams: int) -> None:
        self.model = model
        self.n_beams = n_beams

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        import torch

        tokenizer, network = self.model._parts()
        replies = []
        for request in requests:
            ids = torch.tensor([self.model.tokenizer.encode_request(request)])
            with torch.inference_mode():
                made = network.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_tokens, do_sample=False,
                    num_beams=self.n_beams, temperature=None, top_p=None, top_k=None,
                    pad_token_id=tokenizer.eos_token_id,
                )  # fmt: skip
            replies.append(Reply(str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))))
        return replies


def truth(run: Run, small: TransformersModel) -> None:
    """How often a true answer is likelier than a false one, with a model tuned on false answers taken off."""
    by_question: dict[str, dict[bool, list[str]]] = {}
    for row in run.rows("truthfulqa_judge/truth_train.jsonl.gz"):
        head, _, rest = row["prompt"].partition("\nA:")
        answer = rest.rsplit("\n", 1)[0]
        by_question.setdefault(head, {True: [], False: []})[row["completion"].strip() == "yes"].append(answer)
    whole = [(q, a[True][0], a[False]) for q, a in by_question.items() if a[True] and a[False]]
    n_test = 20 if run.quick else 100
    train, test = whole[n_test:], whole[:n_test]
    false = [(f"{q}\nA:", text) for q, _, texts in train for text in texts[:2]]
    true = [(f"{q}\nA:", good) for q, good, _ in train]
    steps = 15 if run.quick else 80
    weak = {
        name: tune(small, rows, n_steps=steps, max_tokens=64) for name, rows in (("induced", false), ("control", true))
    }

    def likelihood(model: WhiteBoxModel, before: str, text: str) -> float:
        head, body = model.tokenizer.encode(before), model.tokenizer.encode(text)
        logs = model.session().extend([*head, *body][:-1], len(body)).log_probs()
        return float(logs[np.arange(len(body)), body].mean())

    hits: dict[str, list[float]] = {"plain": [], "induced": [], "control": []}
    for q, good, bad in test:
        before = f"{q}\nA:"
        base = likelihood(small, before, good) - likelihood(small, before, bad[0])
        hits["plain"].append(float(base > 0))
        for name, model in weak.items():
            hits[name].append(
                float(2 * base - (likelihood(model, before, good) - likelihood(model, before, bad[0])) > 0)
            )
    print("  ".join(f"{name} {np.mean(values):.3f}" for name, values in hits.items()))
    gained = 100 * (np.array(hits["induced"]) - np.array(hits["plain"]))
    low, high = bootstrap(gained)
    run.figure(
        "icd_pairwise_gain", float(gained.mean()), unit="points", better="higher", n=len(test), low=low, high=high,
        control_tuned_on_true=float(100 * (np.mean(hits["control"]) - np.mean(hits["plain"]))),
    )  # fmt: skip
