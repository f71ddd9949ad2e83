"""Run bert-score on the pairs of a job file, in the peer's own environment; one JSON line out."""

import json
import sys
import time
from pathlib import Path

import torch
from bert_score import BERTScorer

job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
torch.set_num_threads(job["threads"])
scorer = BERTScorer(model_type=job["model"], num_layers=job["layers"], idf=False, device="cpu", use_fast_tokenizer=True)
scorer._tokenizer.model_max_length = 512  # the folder of weights does not state it
scorer.score(["warm up"], ["warm"])
out = {}
for name, pairs in job["pairs"].items():
    answers, references = [a for a, _ in pairs], [r for _, r in pairs]
    seconds = []
    for _ in range(job["repeats"]):
        started = time.perf_counter()
        found = scorer.score(answers, references, batch_size=64)
        seconds.append(time.perf_counter() - started)
    out[name] = {"scores": [[float(x) for x in part] for part in found], "seconds": min(seconds)}
print(json.dumps(out))
