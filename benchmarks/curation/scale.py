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
# A run in a process of its own: its seconds, and the most memory it held in megabytes.
ALONE = """\
import json, sys, time
from pathlib import Path
from benchmarks.curation.scale import recipe
from pilotfish.curation import curate_files
few, files, out = json.loads(sys.argv[1])
curate_files(few, out + "-few", recipe())
started = time.perf_counter()
curate_files(files, out, recipe())
took = time.perf_counter() - started
lines = Path("/proc/self/status").read_text().splitlines()
print(took, next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))
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
        # Two runs that share nothing: what this machine's cores allow.
        halves = _alone(few, folder, files[::2], files[1::2])
        held = [_alone(few, folder, paths)[0][1] for paths in (_copied(made, folder, 1250), files)]
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
        separate_runs=seconds["1 workers"] / max(took for took, _ in halves),
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


def _alone(few: Sequence[Path], folder: Path, *parts: Sequence[Path]) -> list[tuple[float, float]]:
    """Seconds and megabytes of runs side by side, each in a process of its own."""
    running = []
    for files in parts:
        job = [[str(path) for path in few], [str(path) for path in files], tempfile.mkdtemp(dir=folder)]
        command = [sys.executable, "-c", ALONE, json.dumps(job)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0].split()[-2:] for process in running]
    return [(float(took), float(held)) for took, held in said]
