"""Run by Jevstiller's own Python: replay recorded answers as its teacher, train, and look at the test calls."""

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from jevstiller import Config, Jevstiller, ReplayTeacher, Task, TeacherOutput
from tokenizers import Tokenizer


class Encoder:
    """The given ONNX sentence encoder, behind Jevstiller's interface."""

    def __init__(self, graph: str, tokenizer: str) -> None:
        self.id = "minilm-" + hashlib.sha256(Path(graph).read_bytes()).hexdigest()[:8]
        self.tokenizer = Tokenizer.from_file(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(256)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.dim = int(self.session.get_outputs()[0].shape[1])

    def encode(self, texts: list[str]) -> np.ndarray:
        ids = [e.ids for e in self.tokenizer.encode_batch(list(texts))]
        vectors = np.zeros((len(ids), self.dim), dtype=np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            longest = max(len(ids[i]) for i in rows)
            tokens = np.zeros((len(rows), longest), dtype=np.int32)
            mask = np.zeros_like(tokens)
            for r, i in enumerate(rows):
                tokens[r, : len(ids[i])], mask[r, : len(ids[i])] = ids[i], 1
            vectors[rows] = self.session.run(["embedding"], {"input_ids": tokens, "attention_mask": mask})[0]
        return vectors


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    labels = job["labels"]
    teacher = ReplayTeacher(
        {
            text: TeacherOutput(label=answer, probs={c: float(c == answer) for c in labels}, confidence=1.0, model="x")
            for text, answer in job["train"]
            if answer in labels
        }
    )
    encoder = Encoder(**job["encoder"])
    task = Task("bench", job["system"], labels, target_agreement=job["level"])
    loop = Jevstiller(task, teacher, Path(job["folder"]) / "jev", encoder=encoder, config=Config(training="manual"))
    texts = [text for text, answer in job["train"] if answer in labels]
    for start in range(0, len(texts), 500):
        loop.classify_batch(texts[start : start + 500])
    started = time.perf_counter()
    loop.train_now()
    seconds = time.perf_counter() - started
    newest = loop.versions()[-1]["name"]
    found = loop.evaluate([text for text, _ in job["test"]], [answer for _, answer in job["test"]], version=newest)
    local = np.asarray(found["accepted"], dtype=bool)
    said = [str(label) for label in found["student_label"]]
    loop.close()
    print(json.dumps({"seconds": seconds, "local": local.tolist(), "said": said}))


main()
