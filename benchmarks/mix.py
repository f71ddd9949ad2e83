"""Mixtures of domains: held-out loss of a small language model trained on each, beside uniform and natural weights."""

from __future__ import annotations

import numpy as np

from benchmarks.figures import Run, bootstrap
from pilotfish.curation.mixing import ByteModel
from pilotfish.methods.pretraining_data import autoscale, doremi, presence


def main(run: Run) -> None:
    train, held = domains(run)
    # What a method may look at beside training text is cut from that, not what the figures are scored on.
    seen = {name: text[: int(len(text) * 0.9)] for name, text in train.items()}
    seen_held = [text[int(len(text) * 0.9) :] for text in train.values()]
    steps = 80 if run.quick else 400
    natural = np.array([len(text) for text in train.values()], dtype=float)
    found: dict[str, list[np.ndarray]] = {}
    for seed in range(1 if run.quick else 3):
        mixtures = {
            "uniform": np.full(len(train), 1 / len(train)),
            "natural": natural / natural.sum(),
            "doremi": doremi(train, steps // 2, seed),
        }
        if not run.quick:
            mixtures["autoscale"] = autoscale(seen, seen_held, steps // 2, seed)
            mixtures["presence"] = presence(train, steps // 2, seed)
        for name, mixture in mixtures.items():
            losses = ByteModel(train, seed=100 + seed).train(mixture, steps).held_out(held)
            found.setdefault(name, []).append(losses)
            said, each = ", ".join(f"{w:.2f}" for w in mixture), ", ".join(f"{loss:.3f}" for loss in losses)
            print(
                f"seed {seed} {name:10s} worst {losses.max():.3f} mean {losses.mean():.3f} ({each}) weights {said}",
                flush=True,
            )
    for figure, measure in (("worst_domain_loss_ratio", np.max), ("mean_loss_ratio", np.mean)):
        ours = np.array([measure(x) for x in found["doremi"]])
        base = np.array([measure(x) for x in found["uniform"]])
        nature = np.array([measure(x) for x in found["natural"]])
        low, high = bootstrap(ours / base)
        others = {name: float(np.mean([measure(x) for x in rows])) for name, rows in found.items()}
        run.figure(
            figure,
            float((ours / base).mean()),
            unit="DoReMi's loss over uniform's",
            better="lower",
            n=len(train),
            seeds=len(ours),
            low=low,
            high=high,
            over_natural=float((ours / nature).mean()),
            losses=others,
        )


def domains(run: Run) -> tuple[dict[str, str], list[str]]:
    """Texts of domains of the shared data, and a tenth of each held out."""
    texts: dict[str, str] = {}
    for name, path, field in (
        ("web", "c4_sample/c4", "input"),
        ("speeches", "text_corpora/inaugural", "text"),
        ("chat", "text_corpora/nps_chat", "text"),
        ("scripture", "text_corpora/genesis", "text"),
        ("code and papers", "c4_sample/toy_pile", "contents"),
    ):
        texts[name] = "\n\n".join(row[field] for row in run.rows(f"{path}.jsonl.gz"))[:600_000]
    cut = {name: int(len(text) * 0.9) for name, text in texts.items()}
    return {n: t[: cut[n]] for n, t in texts.items()}, [t[cut[n] :] for n, t in texts.items()]
