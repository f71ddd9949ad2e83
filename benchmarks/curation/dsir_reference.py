"""Run by data-selection's own Python: its features and importance weights of raw texts; scores and speed."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from data_selection.hashed_ngram_dsir import get_ngram_counts


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    n_bytes = sum(len(text.encode()) for text in job["raw"])
    started = time.process_time()
    target = sum(get_ngram_counts(text) for text in job["target"])
    raw = sum(get_ngram_counts(text) for text in job["raw"])
    ratio = np.log(target / target.sum() + 1e-8) - np.log(raw / raw.sum() + 1e-8)
    scores = [float(get_ngram_counts(text) @ ratio) for text in job["raw"]]
    seconds = time.process_time() - started
    print(json.dumps({"scores": scores, "mb_per_s": n_bytes / seconds / 1e6}))


main()
