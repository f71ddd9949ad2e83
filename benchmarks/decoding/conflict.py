"""Context-aware decoding: contexts that contradict what the model knows, and contexts that do not."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator

from benchmarks.decoding.facts import COUNTRIES, FURTHER, Relation
from benchmarks.figures import Run, bootstrap
from benchmarks.kept import Kept
from pilotfish.decoding.decoder import Decoder, fuse
from pilotfish.decoding.fusion import ContextAware
from pilotfish.methods.build_decoder import without_context
from pilotfish.models.transformers import TransformersModel
from pilotfish.types import Request

__all__ = ["context"]

_N_CHOOSE = 16
_ASKED = 0.5  # points of agreement that may be lost
# What is told, what is asked, and the answer that the context gives.
Item = tuple[str, str, str]
# Under the names by which their answers are kept. The gentlest first, since the first of equals is chosen.
WAYS = {
    "0.5 copied": ContextAware(0.5, adaptive=False, copied=True),
    "1.0 copied": ContextAware(1.0, adaptive=False, copied=True),
    "(0.5, False, 0.0, 0.1)": ContextAware(0.5, adaptive=False, plausible=0.1),
    "(1.0, False, 0.0, 0.1)": ContextAware(1.0, adaptive=False, plausible=0.1),
    "(1.0, False, 0.0, 0.03)": ContextAware(1.0, adaptive=False, plausible=0.03),
    "(0.5, False, 0.0, 0.0)": ContextAware(0.5, adaptive=False),
}


def context(run: Run, model: TransformersModel) -> None:
    """Answers as the context has it, plainly and with the contrast, whose settings a third of the facts choose.

    Chosen is the way of most answers as told, among those that lose no more agreement than is asked: on the same facts,
    told as they are, and on passages that are not tested. Facts that the model does not know are left out: there
    nothing is in conflict, and nothing agrees. Each set of facts is parted by itself, so that another one changes
    nothing about what is tested.
    """
    plain = Decoder(model)
    answers = Answers(run)
    rng = np.random.default_rng(0)
    choosing: list[tuple[Item, Item]] = []
    testing: list[tuple[Item, Item]] = []
    for relations in (COUNTRIES, FURTHER):
        pairs = _pairs(run, relations, lambda items: answers.right("plain", plain, items), rng)
        choosing += pairs[: len(pairs) // 3]
        testing += pairs[len(pairs) // 3 :]
    passages = _open(run)
    against = [pair[0] for pair in choosing]
    agreeing = [pair[1] for pair in choosing] + passages[:_N_CHOOSE]
    least = answers.right("plain", plain, agreeing).mean() - _ASKED / 100
    found: dict[str, tuple[bool, float]] = {}
    for name, fusion in WAYS.items():
        aware = _aware(model, fusion)
        told, agreed = (float(answers.right(name, aware, items).mean()) for items in (against, agreeing))
        found[name] = agreed >= least, told
        print(f"{name}: conflict {told:.3f}, agreement {agreed:.3f}", flush=True)
    best = max(WAYS, key=lambda name: found[name])
    print(f"chosen: {best}", flush=True)
    aware = _aware(model, WAYS[best])
    tested = {
        "conflict": [pair[0] for pair in testing],
        "agreement": [pair[1] for pair in testing],
        "open": passages[_N_CHOOSE:],
    }
    shares = {
        name: (answers.right("plain", plain, items), answers.right(best, aware, items))
        for name, items in tested.items()
    }
    for name, (before, after) in shares.items():
        print(f"{name:10s} plain {before.mean():.3f}, context-aware {after.mean():.3f}", flush=True)
    options = ("alpha", "adaptive", "gate", "plausible", "copied")
    common: dict[str, Any] = {name: getattr(WAYS[best], name) for name in options}
    before, after = shares["conflict"]
    low, high = bootstrap(100 * (after - before))
    run.figure(
        "cad_conflict_gain", float(100 * (after - before).mean()), unit="points", better="higher", n=len(before),
        low=low, high=high, plain=float(before.mean()), **common,
    )  # fmt: skip
    for name, figure in (("agreement", "cad_agreement_loss"), ("open", "cad_passage_loss")):
        before, after = shares[name]
        low, high = bootstrap(100 * (before - after))
        run.figure(
            figure, float(100 * (before - after).mean()), unit="points", better="lower", n=len(before), low=low,
            high=high, floor=_ASKED, plain=float(before.mean()), **common,
        )  # fmt: skip


def _pairs(
    run: Run, relations: Mapping[str, Relation], known_of: Callable[[Sequence[Item]], np.ndarray], rng: Generator
) -> list[tuple[Item, Item]]:
    """Each fact that is known without a context, told otherwise and told as it is, in an order drawn at random."""
    pairs = []
    for name, relation in relations.items():
        facts = relation.facts[: 12 if run.quick else None]
        untold = [("", relation.asked(subject), answer) for subject, answer in facts]
        known = [facts[i] for i in np.flatnonzero(known_of(untold))]
        others = sorted({answer for _, answer in known})
        for subject, answer in known:
            wrong = [other for other in others if other != answer]
            said = [wrong[rng.integers(len(wrong))], answer]
            against, agreeing = ((relation.told(subject, a), relation.asked(subject), a) for a in said)
            pairs.append((against, agreeing))
        print(f"{name}: {len(known)} of {len(facts)} known", flush=True)
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _open(run: Run) -> list[Item]:
    """Questions on real passages that hold the answer."""
    items = []
    for row in run.rows("beerqa_sample/train_subsample.jsonl.gz"):
        told, answer = " ".join(text for _, text in row["context"])[:800], row["answers"][0]
        if answer in told and 2 < len(answer) < 30 and answer.lower() not in ("yes", "no"):
            items.append((told, f"{row['question']} Answer with a few words from the context.", answer))
    order = np.random.default_rng(0).permutation(len(items))
    return [items[i] for i in order[: _N_CHOOSE + (4 if run.quick else 300)]]


def _aware(model: TransformersModel, fusion: ContextAware) -> Decoder:
    views = {"without_context": without_context}
    return fuse(fusion=fusion, views=views, with_context=model, without_context=model)


class Answers:
    """Whether each way answers as the context has it; what earlier runs found is not asked again."""

    def __init__(self, run: Run) -> None:
        self.kept = Kept(run, "fusion", "context")
        self.found = {(row["way"], row["item"]): row["right"] for row in self.kept.rows}

    def right(self, way: str, decoder: Decoder, items: Sequence[Item]) -> np.ndarray:
        """1 where the answer is in the reply, else 0, (n,)."""
        hits = []
        for item in items:
            key = way, zlib.crc32("\n".join(item).encode())
            if key not in self.found:
                told, asked, wanted = item
                self.found[key] = wanted.lower() in _answer(decoder, asked, told).lower()
                self.kept.add(way=way, item=key[1], right=self.found[key])
            hits.append(self.found[key])
        return np.array(hits, dtype=float)


def _answer(decoder: Decoder, asked: str, told: str) -> str:
    said = [f"Context: {told}"] if told else []
    return decoder.generate([Request.of(asked, *said, temperature=0, max_tokens=12)])[0].text
