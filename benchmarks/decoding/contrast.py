"""Contrastive decoding: how often open text repeats itself and keeps to its beginning, and sums worked out in words."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from benchmarks.figures import Run, bootstrap
from benchmarks.kept import Kept
from benchmarks.live_table import is_right
from pilotfish.decoding.decoder import Decoder, fuse
from pilotfish.decoding.fusion import Contrastive
from pilotfish.models.embedder import OnnxEmbedder
from pilotfish.models.transformers import TransformersModel
from pilotfish.types import Request

__all__ = ["arithmetic", "repetition"]


def _ways(small: TransformersModel, large: TransformersModel) -> dict[str, Decoder]:
    contrast = fuse(fusion=Contrastive(0.1, 0.5), expert=large, amateur=small)
    return {"plain": Decoder(large), "contrastive": contrast}


def repetition(run: Run, small: TransformersModel, large: TransformersModel) -> None:
    """Share of 4-grams that were written before, of distinct 2-grams, and likeness to the beginning."""
    n = 2 if run.quick else 10
    heads = [row["text"][:120] for _, row in zip(range(n), run.rows("text_corpora/brown.jsonl.gz"), strict=False)]
    embedder = OnnxEmbedder()
    begun = embedder.embed(heads)
    shares: dict[str, tuple[float, float, float]] = {}
    for name, decoder in _ways(small, large).items():
        rep, distinct, texts = [], [], []
        for head in heads:
            request = Request.of(f"Continue the text: {head}", temperature=0, max_tokens=40 if run.quick else 96)
            texts.append(decoder.generate([request])[0].text)
            words = texts[-1].split()
            fours = list(zip(*(words[i:] for i in range(4)), strict=False))
            twos = list(pairwise(words))
            rep.append(1 - len(set(fours)) / max(1, len(fours)))
            distinct.append(len(set(twos)) / max(1, len(twos)))
        alike = float((begun * embedder.embed(texts)).sum(axis=1).mean())
        shares[name] = float(np.mean(rep)), float(np.mean(distinct)), alike
        print(f"{name}: rep-4 {shares[name][0]:.3f}, distinct-2 {shares[name][1]:.3f}, coherence {alike:.3f}")
    (rep_4, distinct_2, coherence), plain = shares["contrastive"], shares["plain"]
    run.figure(
        "contrastive_rep_4", rep_4, unit="share", better="lower", n=n, peer="plain greedy", peer_value=plain[0],
        peer_source="measured", distinct_2=distinct_2, plain_distinct_2=plain[1],
    )  # fmt: skip
    run.figure(
        "contrastive_coherence", coherence, unit="cosine of MiniLM vectors", better="higher", n=n,
        peer="plain greedy", peer_value=plain[2], peer_source="measured",
    )  # fmt: skip


def arithmetic(run: Run, small: TransformersModel, large: TransformersModel) -> None:
    """Points of GSM8K questions that the contrast gains over the large model alone; what is kept is not asked again."""
    kept = Kept(run, "fusion", "contrast gsm8k")
    known = {(row["i"], row["way"]): row["right"] for row in kept.rows}
    rows = list(run.rows("gsm8k/test.jsonl.gz"))
    chosen = np.random.default_rng(0).permutation(len(rows))[: 2 if run.quick else 20].tolist()
    ways = _ways(small, large)
    for i in chosen:
        text = f"{rows[i]['question']}\nSolve it in a few short steps. End with '#### ' and the number."
        for way, decoder in ways.items():
            if (i, way) not in known:
                (reply,) = decoder.generate([Request.of(text, temperature=0, max_tokens=192)])
                known[i, way] = is_right("gsm8k", reply.text, rows[i]["answer"])
                kept.add(i=i, way=way, right=known[i, way])
    plain, ours = (np.array([known[i, way] for i in chosen], dtype=float) for way in ways)
    low, high = bootstrap(100 * (ours - plain))
    run.figure(
        "contrastive_gsm8k_gain", float(100 * (ours - plain).mean()), unit="points", better="higher", n=len(chosen),
        low=low, high=high, plain=float(plain.mean()),
    )  # fmt: skip
