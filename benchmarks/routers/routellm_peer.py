"""RouteLLM in its own environment: its routers are fitted on recorded outcomes and give a win rate per prompt.

It asks an OpenAI-compatible server for embeddings, so a server in this process answers with vectors handed in. Its
code, the client's call included, runs as it is.
"""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

STRONG, WEAK = "gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1"
ROUTERS = ("random", "sw_ranking", "mf")


class Vectors(BaseHTTPRequestHandler):
    """Answers ``POST /embeddings`` from a table."""

    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet.
    wbufsize = 65536
    disable_nagle_algorithm = True
    table: ClassVar[dict[str, NDArray[np.float32]]] = {}

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vector = self.table[asked["input"][0]]
        base64_asked = asked.get("encoding_format") == "base64"
        value = base64.b64encode(vector.tobytes()).decode() if base64_asked else vector.tolist()
        reply = {
            "object": "list",
            "model": asked["model"],
            "data": [{"object": "embedding", "index": 0, "embedding": value}],
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


def main(folder: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vectors)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # Its client is made when its modules are imported, hence the imports below.
    os.environ.update(OPENAI_API_KEY="none", OPENAI_BASE_URL=f"http://127.0.0.1:{server.server_port}")
    # Imported before anything is timed.
    from routellm.routers.routers import ROUTER_CLS
    from routellm.routers.similarity_weighted.utils import OPENAI_CLIENT

    assert set(ROUTERS) <= set(ROUTER_CLS)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    timed = np.load(folder / "timed.npy")
    Vectors.table.update(zip(job["timed"], timed, strict=True))
    found: dict[str, Any] = {"scores": {name: [] for name in ROUTERS}, "ms": {}, "fit_seconds": {}, "failed": {}}
    for k, part in enumerate(job["splits"]):
        place = folder / str(k)
        learn, test = np.load(place / "learn.npy"), np.load(place / "test.npy")
        Vectors.table.update(zip(part["test"], test, strict=True))
        for name in ROUTERS:
            if name in found["failed"]:
                continue
            try:
                started = time.perf_counter()
                router = _router(name, place, part["learn"], part["winners"], learn)
                found["fit_seconds"].setdefault(name, time.perf_counter() - started)
                found["scores"][name].append([float(router.calculate_strong_win_rate(text)) for text in part["test"]])
                if k == 0:
                    found["ms"][name] = _milliseconds(router.calculate_strong_win_rate, job["timed"])
            except Exception as error:  # noqa: BLE001 - a router that fails must not take the others with it
                found["failed"][name] = f"{type(error).__name__}: {error}"
    found["ms"]["embedding call"] = _milliseconds(
        lambda text: OPENAI_CLIENT.embeddings.create(input=[text], model="text-embedding-3-small"), job["timed"]
    )
    print(json.dumps(found))


def _milliseconds(decide: Any, prompts: list[str]) -> list[float]:
    times = []
    for prompt in prompts * 4:
        started = time.perf_counter()
        decide(prompt)
        times.append((time.perf_counter() - started) * 1000)
    return times


def _router(name: str, folder: Path, prompts: list[str], winners: list[str], vectors: NDArray[np.float32]) -> Any:
    from routellm.routers.routers import ROUTER_CLS

    if name == "random":
        random.seed(0)
        return ROUTER_CLS[name]()
    if name == "mf":
        return ROUTER_CLS[name](_factorised(folder, winners, vectors), text_dim=vectors.shape[1])
    battles, embeddings = folder / "battles", folder / "embeddings"
    rows = [
        {
            "model_a": STRONG,
            "model_b": WEAK,
            "prompt": json.dumps([prompt]),
            "winner_model_a": int(winner == "model_a"),
            "winner_model_b": int(winner == "model_b"),
            "winner_tie": int(winner == "tie"),
        }
        for prompt, winner in zip(prompts, winners, strict=True)
    ]
    _jsonl(battles, rows)
    _jsonl(embeddings, [{"embeddings": vector.tolist()} for vector in vectors])
    return ROUTER_CLS[name]([str(battles)], [str(embeddings)], strong_model=STRONG, weak_model=WEAK)


def _jsonl(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def _factorised(folder: Path, winners: list[str], vectors: NDArray[np.float32]) -> str:
    """Train as the peer's own training module does, with its settings; the folder of the model in its served form."""
    from routellm.routers.matrix_factorization import train_matrix_factorization as training
    from routellm.routers.matrix_factorization.model import MODEL_IDS, MFModel

    decided = [
        {"model_a": STRONG, "model_b": WEAK, "winner": winner, "idx": i}
        for i, winner in enumerate(winners)
        if winner != "tie"
    ]
    random.shuffle(decided)
    cut = int(len(decided) * 0.95)
    fit = training.PairwiseDataset(decided[:cut]).get_dataloaders(batch_size=64, shuffle=True)
    check = training.PairwiseDataset(decided[cut:]).get_dataloaders(1024, shuffle=False)
    width = vectors.shape[1]
    model = training.MFModel_Train(
        dim=128,
        num_models=len(MODEL_IDS),
        num_prompts=len(vectors),
        text_dim=width,
        use_proj=True,
        npy_path=str(folder / "learn.npy"),
    )
    training.train_loops(model, fit, check, lr=3e-4, weight_decay=1e-5, alpha=0.1, num_epochs=100, device="cpu")
    served = MFModel(dim=128, num_models=len(MODEL_IDS), text_dim=width, num_classes=1, use_proj=True)
    learned = model.state_dict()
    served.load_state_dict(
        {
            "P.weight": learned["P.weight"],
            "text_proj.0.weight": learned["text_proj.weight"],
            "classifier.0.weight": learned["classifier.weight"],
        }
    )
    served.save_pretrained(folder / "mf")
    return str(folder / "mf")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
