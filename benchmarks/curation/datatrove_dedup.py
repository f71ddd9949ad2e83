"""Run by datatrove's own Python: its MinHash pipeline on the first documents of a file; speed."""

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


def main() -> None:
    path, n = Path(sys.argv[1]), int(sys.argv[2])
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        lines = path.read_text(encoding="utf-8").split("\n")[:n]
        (folder / "in" / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        n_bytes = sum(len(json.loads(line)["text"].encode()) for line in lines if line)
        started = time.perf_counter()
        reader = JsonlReader(str(folder / "in"))
        stages = [
            ([reader, MinhashDedupSignature(str(folder / "sig"), config=config)], 1),
            ([MinhashDedupBuckets(str(folder / "sig"), str(folder / "buckets"), config=config)], 14),
            ([MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config)], 1),
            ([reader, MinhashDedupFilter(str(folder / "remove")), JsonlWriter(str(folder / "out"))], 1),
        ]
        for steps, tasks in stages:
            LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=2, skip_completed=False).run()
        seconds = time.perf_counter() - started
    print(json.dumps({"mb_per_s": n_bytes / seconds / 1e6, "n": len(lines), "seconds": seconds}))


if __name__ == "__main__":
    main()
