"""The other gateways, each in a virtual environment of its own under ``benchmarks/peers/``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PEERS = Path(__file__).parent.parent / "peers"
REQUIREMENTS = {
    "litellm": ["litellm[proxy]==1.106.2"],
    "tensorzero": ["tensorzero==2026.6.0"],
    "thinkless": ["thinkless==0.5.0"],
    "jevstiller": ["jevstiller==0.5.2"],
    "bert-score": ["bert-score==0.3.13", "torch==2.13.0", "transformers==4.57.1"],
    "llmrouter": [
        "llmrouter-lib==0.4.0",
        "torch==2.13.0",
        "transformers",
        "torch-geometric",
        "pandas",
        "scikit-learn",
        "pyyaml",
        "tqdm",
        "pydantic",
        "pillow",
    ],
    "routellm": [
        "routellm==0.2.0",
        "torch==2.13.0",
        "transformers",
        "datasets",
        "openai",
        "pandas",
        "scikit-learn",
        "pyyaml",
        "tqdm",
    ],
}
# Installed without what they ask for, most of which serves chats: what their routers import is listed after them.
LEAN = {"llmrouter", "routellm"}

LITELLM_CONFIG = """\
model_list:
  - model_name: bench
    litellm_params:
      model: openai/bench
      api_base: {url}
      api_key: sk-bench
litellm_settings:
  telemetry: false
  set_verbose: false
  num_retries: 0
"""
TENSORZERO_CONFIG = """\
[gateway]
observability.enabled = false

[models.bench]
routing = ["upstream"]

[models.bench.providers.upstream]
type = "openai"
api_base = "{url}/"
model_name = "bench"
api_key_location = "none"
"""


def interpreter(name: str) -> Path | None:
    """The peer's Python, installed where it is not yet; None when it cannot be."""
    folder = PEERS / name
    python = folder / "bin" / "python"
    if python.exists():
        return python
    print(f"installing {' '.join(REQUIREMENTS[name])} under {folder}", file=sys.stderr)
    first, *rest = REQUIREMENTS[name]
    steps = [rest, ["--no-deps", first]] if name in LEAN else [REQUIREMENTS[name]]
    try:
        venv.create(folder, with_pip=True)
        for step in steps:
            subprocess.run([python, "-m", "pip", "install", "-q", *step], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{name} cannot be installed: {error}", file=sys.stderr)
        # Half an environment would be taken for a whole one by the next run.
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return python


def version(name: str) -> str:
    """Name and version of an installed peer."""
    package = REQUIREMENTS[name][0].split("[")[0].split("==")[0]
    code = f"from importlib.metadata import version; print(version({package!r}))"
    found = subprocess.run([PEERS / name / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    return f"{package} {found.stdout.strip()}"


def litellm_proxy(python: Path, url: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start LiteLLM's proxy: one worker, its settings for production, no database."""
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(url=url), encoding="utf-8")
    environ = {
        **os.environ,
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # Spares it the check of a key on every call.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    environ.pop("PYTHONPATH", None)
    command = [
        python.parent / "litellm",
        "--config",
        config,
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--num_workers",
        "1",
    ]
    with (folder / "litellm.out").open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=environ)


def tensorzero(
    python: Path, url: str, concurrency: int, seconds: float, stream: bool, folder: Path
) -> dict[str, float]:
    """Load TensorZero's embedded gateway for some seconds; calls per second and latency."""
    config = folder / "tensorzero.toml"
    config.write_text(TENSORZERO_CONFIG.format(url=url), encoding="utf-8")
    script = Path(__file__).with_name("tensorzero_client.py")
    arguments = [config, concurrency, seconds, "stream" if stream else "json"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, script, *map(str, arguments)], capture_output=True, text=True, check=True, env=environ
    )
    measured: dict[str, float] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return measured
