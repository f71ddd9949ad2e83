"""A recipe on more cores, on Ray, and on ten times the input: what it gains, what it adds, what it holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from benchmarks.curation.corpus import Corpus, corpus
from benchmarks.figures import Run
from pilotfish.curation import Language, MinHashDedup, Rules, curate_files

__all__ = ["scale"]

LOCAL_CLUSTER = "ray://"
# What a run of one process holds at its most, in megabytes.
HELD = """\
import json, resource, sys
from benchmarks.curation.scale import recipe
from pilotfish.curation import curate_files
curate_files(json.loads(sys.argv[1]), sys.argv[2], recipe())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def recipe() -> list:
    """Rules, language and near-duplicates: a recipe with every kind of stage."""
    return [Rules.gopher() + Rules.c4() + Rules.fineweb(), Language("en", 0.5), MinHashDedup()]


def scale(run: Run) -> None:
    """Workers, a cluster and memory, on the files of the corpus."""
    made = corpus(run)
    files = made.files[: 2 if run.quick else None]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = _copied(made, folder, 40)
        curate_files(few, folder / "warm", recipe())
        # In turns, so that what else the machine does meets both alike.
        pools = [
            {f"{n} workers": _seconds(files, folder / "out", workers=n) for n in (1, 2)}
            for _ in range(1 if run.quick else 3)
        ]
        cluster = _on_ray(files, few, folder, 1 if run.quick else 3)
        held = [_held(paths, folder / f"held {k}") for k, paths in enumerate((_copied(made, folder, 1250), made.files))]
    seconds = {way: min(took[way] for took in pools) for way in pools[0]} | cluster
    n_bytes = sum(path.stat().st_size for path in files)
    for way, took in seconds.items():
        print(f"{way:10s} {n_bytes / took / 1e6:6.1f} MB/s of files", flush=True)
    run.figure(
        "recipe_scaling",
        seconds["1 workers"] / seconds["2 workers"],
        unit="2 workers over 1, best of three",
        better="higher",
        n=made.n_documents,
        target=1.8,
    )
    if cluster:
        run.figure(
            "ray_added_share",
            seconds["Ray"] / seconds["2 workers"] - 1,
            unit="of the time on 2 workers, start-up left out",
            better="lower",
            n=made.n_documents,
            target=0.1,
        )
    run.figure(
        "memory_ratio_10x",
        held[1] / held[0],
        unit="most memory held at ten times the input",
        better="lower",
        n=made.n_documents,
        megabytes=[round(value) for value in held],
    )


def _on_ray(files: Sequence[Path], few: Sequence[Path], folder: Path, n_rounds: int) -> dict[str, float]:
    """Seconds as tasks of a cluster of this machine, its start left out."""
    try:
        import ray
    except ImportError:
        return {}
    started = time.perf_counter()
    ray.init(num_cpus=2, log_to_driver=False)
    # Worker processes come up and load the kernels with their first tasks.
    curate_files(few, folder / "warm there", recipe(), on=LOCAL_CLUSTER)
    print(f"Ray starts in {time.perf_counter() - started:.1f} s", flush=True)
    seconds = min(_seconds(files, folder / "out", on=LOCAL_CLUSTER) for _ in range(n_rounds))
    ray.shutdown()
    return {"Ray": seconds}


def _copied(made: Corpus, folder: Path, n: int) -> list[Path]:
    """The first n documents of each file, as files."""
    within = folder / f"first {n}"
    within.mkdir()
    paths = []
    for path in made.files:
        with path.open("rb") as lines, (within / path.name).open("wb") as out:
            out.writelines(islice(lines, n))
        paths.append(within / path.name)
    return paths


def _seconds(files: Sequence[Path], out: Path, **how: object) -> float:
    started = time.perf_counter()
    curate_files(files, out, recipe(), **how)
    took = time.perf_counter() - started
    shutil.rmtree(out)
    return took


def _held(files: Sequence[Path], out: Path) -> float:
    command = [sys.executable, "-c", HELD, json.dumps([str(path) for path in files]), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
