"""Run by datatrove's own Python: its MinHash pipeline on the first documents of a file; speed beyond its start-up."""

import json
import sys
import tempfile
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

N_FEW = 50


def timed(lines: list[str]) -> tuple[int, float]:
    """Bytes of text, and seconds that its four stages took."""
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "in" / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        n_bytes = sum(len(json.loads(line)["text"].encode()) for line in lines)
        started = time.perf_counter()
        reader = JsonlReader(str(folder / "in"))
        stages = [
            ([reader, MinhashDedupSignature(str(folder / "sig"), config=config)], 1),
            ([MinhashDedupBuckets(str(folder / "sig"), str(folder / "buckets"), config=config)], 14),
            ([MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config)], 1),
            ([reader, MinhashDedupFilter(str(folder / "remove")), JsonlWriter(str(folder / "out"))], 1),
        ]
        for steps, tasks in stages:
            LocalPipelineExecutor(
                pipeline=steps, tasks=tasks, workers=2, skip_completed=False, logging_dir=str(folder / "logs")
            ).run()
        return n_bytes, time.perf_counter() - started


def main() -> None:
    with Path(sys.argv[1]).open(encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line, _ in zip(file, range(int(sys.argv[2])), strict=False)]
    # Its stages start processes for seconds: what a few documents take is no part of its speed.
    few, start = timed(lines[:N_FEW])
    many, seconds = timed(lines)
    print(json.dumps({"mb_per_s": (many - few) / (seconds - start) / 1e6, "n": len(lines), "start": start}))


if __name__ == "__main__":
    main()
