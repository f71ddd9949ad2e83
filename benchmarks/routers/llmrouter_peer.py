"""llmrouter-lib in its own environment: its trainers fit its routers, its ``route_batch`` chooses a model per query.

Sentence vectors are handed in where it would run an encoder from a hub. ``route_batch`` also calls the model it chose:
without an API key that fails at once, and the choice stays.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from llmrouter import models

# Settings of the project's published training configurations; where it publishes none, its defaults. The kernel machine
# leaves out probabilities, which do not change what it chooses.
ROUTERS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "knn": ("KNNRouter", "KNNRouterTrainer", {"hparam": {"n_neighbors": 5, "weights": "uniform"}}),
    "svm": ("SVMRouter", "SVMRouterTrainer", {"hparam": {"kernel": "rbf", "C": 1.0, "gamma": "scale"}}),
    "mlp": (
        "MLPRouter",
        "MLPTrainer",
        {
            "hparam": {
                "hidden_layer_sizes": [128, 64],
                "activation": "relu",
                "lr": 0.001,
                "epochs": 100,
                "batch_size": 32,
                "alpha": 0.0001,
            }
        },
    ),
    "mf": (
        "MFRouter",
        "MFRouterTrainer",
        {"hparam": {"latent_dim": 128, "lr": 0.001, "epochs": 5, "noise_alpha": 0.0}},
    ),
    "elo": ("EloRouter", "EloRouterTrainer", {"hparam": {}}),
    "hybrid": (
        "HybridLLMRouter",
        "HybridLLMTrainer",
        {
            "hparam": {"hidden_layer_sizes": [128, 64], "activation": "relu", "solver": "adam", "max_iter": 300},
            "router_mode": "probabilistic",
            "router_tau": 0.1,
            "router_threshold": 0.5,
        },
    ),
    "graph": ("GraphRouter", "GraphTrainer", {"hparam": {}}),
    "smallest": ("SmallestLLM", None, {}),
    "largest": ("LargestLLM", None, {}),
}


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    test_vectors = dict(zip(job["test"], torch.from_numpy(np.load(folder / "test.npy")), strict=True))
    shared = _data_files(folder, job)
    found: dict[str, Any] = {"choices": {}, "seconds": {}, "failed": {}}
    # What its parts print must not mix with the answer.
    with contextlib.redirect_stdout(sys.stderr):
        for name in job["routers"]:
            for seed in (random.seed, np.random.seed, torch.manual_seed):
                seed(0)
            try:
                started = time.perf_counter()
                found["choices"][name] = _choices(name, folder, shared, job["test"], test_vectors)
                found["seconds"][name] = time.perf_counter() - started
            except Exception as error:  # noqa: BLE001 - a router that fails must not take the others with it
                found["failed"][name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


def _data_files(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Write the routing data in the peer's format; the part of its configuration that all routers share."""
    rows = [
        {"query": query, "model_name": model, "performance": score, "embedding_id": i}
        for i, (query, scores) in enumerate(job["train"])
        for model, score in scores.items()
    ]
    (folder / "routing.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "llms.json").write_text(json.dumps(job["llms"]), encoding="utf-8")
    vectors = torch.from_numpy(np.load(folder / "train.npy"))
    torch.save(vectors, folder / "vectors.pt")
    described = np.load(folder / "llms.npy").tolist()
    return {
        "data_path": {
            "routing_data_train": str(folder / "routing.jsonl"),
            "query_embedding_data": str(folder / "vectors.pt"),
            "llm_data": str(folder / "llms.json"),
        },
        "llm_data": {name: {"embedding": vector} for name, vector in zip(job["llms"], described, strict=True)},
        "api_endpoint": "http://127.0.0.1:9",
        "text_dim": vectors.shape[1],
    }


def _choices(
    name: str, folder: Path, shared: dict[str, Any], queries: list[str], vectors: dict[str, torch.Tensor]
) -> list[str]:
    kind, trainer, own = ROUTERS[name]
    suffix = "pt" if name == "graph" else "pkl"
    saved = str(folder / f"{name}.{suffix}")
    settings = {**shared, **own}
    settings["hparam"] = {**own.get("hparam", {}), **({"text_dim": shared["text_dim"]} if name == "mf" else {})}
    settings["model_path"] = {"ini_model_path": "", "save_model_path": saved, "load_model_path": saved}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    router_class = getattr(models, kind)
    router = router_class(str(path))
    if trainer is not None:
        getattr(models, trainer)(router, device="cpu").train()
    sys.modules[router_class.__module__].get_longformer_embedding = vectors.__getitem__  # type: ignore[attr-defined]
    return [row["model_name"] for row in router.route_batch([{"query": query} for query in queries])]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
