"""Near-duplicate removal end to end on a corpus with planted copies: speed, recall and precision beside other tools."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.curation.corpus import Corpus, corpus
from benchmarks.curation.peers import measured
from benchmarks.figures import Run
from pilotfish.curation import MinHashDedup, curate_files
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.sorted_keys import join, write_keys

N_BANDS, N_ROWS, N_GRAM = 14, 8, 5
N_ROUNDS = 5


def main(run: Run) -> None:
    made = corpus(run)
    step = MinHashDedup(N_BANDS, N_ROWS, N_GRAM)
    if run.wants("speed") or run.wants("scaling"):
        speeds(run, made, step)
    if run.wants("quality"):
        quality(run, made, step)


def speeds(run: Run, made: Corpus, step: MinHashDedup) -> None:
    """The whole corpus from files to files, and the other tools on its first documents."""
    # In turns, so that what else the machine does meets both alike.
    rounds = [{workers: _speed(made, step, workers) for workers in (1, 2)} for _ in range(N_ROUNDS)]
    speed = {workers: max(made_in[workers] for made_in in rounds) for workers in (1, 2)}
    for workers in speed:
        print(f"{workers} workers: {', '.join(f'{r[workers]:.1f}' for r in rounds)} MB/s", flush=True)
    n = made.n_documents
    run.figure(
        "mb_per_s",
        speed[2],
        unit="MB/s, 2 workers, best of five",
        better="higher",
        n=n,
        one_worker=speed[1],
        target=85,
    )
    run.figure(
        "scaling",
        speed[2] / speed[1],
        unit="2 workers over 1, best of five",
        better="higher",
        n=n,
        target=1.8,
        rounds=[round(made_in[2] / made_in[1], 3) for made_in in rounds],
    )
    if not run.wants("speed"):
        return
    few = 2000 if run.quick else 6000
    sketch = measured("datasketch", "datasketch_dedup.py", *_arguments(made, few, 1), limit=120)
    trove = measured("datatrove", "datatrove_dedup.py", made.files[0], 300 if run.quick else 2000, limit=240)
    found = {} if sketch is None else {name: (value, few) for name, value in sketch["mb_per_s"].items()}
    if trove is not None:
        found["datatrove"] = (trove["mb_per_s"], trove["n"])
    daft = measured("daft", "daft_dedup.py", made.files[0].parent, N_BANDS, N_ROWS, N_GRAM)
    if daft is not None:
        # Both read the whole corpus on both cores; Daft writes nothing, and its words end at spaces.
        found["daft"] = (daft["mb_per_s"], daft["n"])
    for name, (value, n_read) in found.items():
        run.figure(
            f"vs_{name}",
            speed[2] / value,
            unit="times its speed",
            better="higher",
            n=n_read,
            peer=name,
            peer_value=value,
            peer_source="measured in the same run",
        )


def quality(run: Run, made: Corpus, step: MinHashDedup) -> None:
    """Recall of planted pairs beside datasketch's at the same bands, and precision against exact similarity."""
    leaders, first = _joined(made, step)
    # One draw of permutations moves recall by a point: both tools are averaged over several.
    n_draws = 3 if run.quick else 5
    draws = [MinHashDedup(N_BANDS, N_ROWS, N_GRAM, seed=seed) for seed in range(2, n_draws + 1)]
    bands = [first, *(_joined(made, draw)[1] for draw in draws)]
    recall, precision, n_pairs = _quality(made, leaders, step.least)
    peer = measured("datasketch", "datasketch_dedup.py", *_arguments(made, 30_000, n_draws), limit=500)
    differences = {}
    for level, pairs in made.pairs.items():
        # What the bands find, before matches are confirmed: what the other tool's index gives.
        met = float(np.mean([[(drawn[a] == drawn[b]).any() for a, b in pairs] for drawn in bands]))
        other = None if peer is None else peer["recall"].get(level)
        print(f"words edited {level}: recall {recall[level]:.3f}, bands alone {met:.3f}, datasketch {other}")
        if other is not None and level != "0":
            differences[level] = met - other
    if differences:
        run.figure(
            "recall_vs_datasketch",
            min(differences.values()),
            unit="recall less the peer's, worst edit level",
            better="higher",
            n=sum(len(p) for p in made.pairs.values()),
            seeds=n_draws,
            target=-0.01,
            recall={level: round(value, 4) for level, value in recall.items()},
            peer_recall=peer["recall"] if peer else None,
        )
    run.figure(
        "precision", precision, unit="pairs with exact Jaccard over the limit", better="higher", n=n_pairs, target=0.99
    )


def _speed(made: Corpus, step: MinHashDedup, workers: int) -> float:
    """Megabytes of text a second, from files that lie in the page cache to files written.

    Within the clock: reading, parsing, signing, joining, and writing what stays. Outside: loading the kernels, by a run
    over two equal documents.
    """
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.jsonl"
        few.write_text('{"text": "warm up the kernels"}\n' * 2, encoding="utf-8")
        curate_files([few], Path(folder) / "few", [step])
        started = time.perf_counter()
        curate_files(made.files, Path(folder) / "out", [step], workers=workers)
        return made.n_bytes / (time.perf_counter() - started) / 1e6


def _arguments(made: Corpus, n: int, n_draws: int) -> list[object]:
    about = made.files[0].parent / "about.json"
    return [made.files[0].parent, about, N_BANDS, N_ROWS, N_GRAM, n, n_draws]


def _joined(made: Corpus, step: MinHashDedup) -> tuple[np.ndarray, np.ndarray]:
    """Leader of every document, and its bands."""
    plan = Plan()
    step.plan(plan)
    folder = Path(tempfile.mkdtemp())
    folders, bands = [], []
    for i, path in enumerate(made.files):
        parts = []
        with path.open("rb") as lines:
            while rows := [json.loads(line) for line in islice(lines, 1000)]:
                batch = Batch([row["text"] for row in rows]).scan(plan)
                parts.append(step.keys(batch, np.arange(len(rows)), []))
        bands.append(np.concatenate([b for b, _ in parts]))
        write_keys(folder / str(i), bands[-1], np.concatenate([c for _, c in parts]))
        folders.append(folder / str(i))
    leaders = join(folders, step.least)[0]
    shutil.rmtree(folder)
    return leaders, np.concatenate(bands)


def _quality(made: Corpus, leaders: np.ndarray, least: float) -> tuple[dict[str, float], float, int]:
    """Recall of planted pairs by level, and precision of joined documents against the exact similarity.

    A document is right if its exact Jaccard similarity to some other member of its group is over the limit.
    """
    recall = {
        level: float(np.mean([leaders[a] == leaders[b] for a, b in pairs]))
        for level, pairs in sorted(made.pairs.items())
    }
    groups: dict[int, list[int]] = {}
    for i in np.flatnonzero(leaders != np.arange(leaders.size)):
        groups.setdefault(int(leaders[i]), []).append(int(i))
    rng = np.random.default_rng(0)
    sampled = [sorted(groups)[i] for i in rng.permutation(len(groups))[:1500]]
    wanted = {i for lead in sampled for i in (lead, *groups[lead][:40])}
    grams = {i: _grams(d["text"]) for i, d in enumerate(made.documents()) if i in wanted}
    right = total = 0
    for lead in sampled:
        members = [lead, *groups[lead][:40]]
        for m in members[1:]:
            best = max(_jaccard(grams[m], grams[o]) for o in members if o != m)
            # Signatures estimate the similarity to about a twentieth: that much is no error of the method.
            right += best >= least - 0.05
            total += 1
    return recall, right / max(total, 1), total


def _grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + N_GRAM]) for i in range(max(len(words) - N_GRAM + 1, 1))}


def _jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / max(len(a | b), 1)
