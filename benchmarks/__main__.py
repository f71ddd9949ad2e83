"""Run one benchmark: its table for people, and one JSON object per figure on a line of its own."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

from benchmarks.figures import Run

# A benchmark is a module with a main that takes the run.
NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef main(run: Run)" in path.read_text("utf-8")
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared data")
    parser.add_argument("--quick", action="store_true", help="two minutes on two cores; figures are rougher")
    parser.add_argument("--only", default="", help="comma-separated parts of the benchmark to run")
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"--data is {args.data}, which is not a folder: give the folder of the shared data.")
    only = frozenset(filter(None, args.only.split(",")))
    run = Run(args.name, data=args.data, quick=args.quick, only=only)
    # What was measured before a stop is kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        importlib.import_module(f"benchmarks.{args.name}").main(run)
        run.ended = True
    finally:
        run.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
