"""Run by datatrove's own Python: its quality filters on the first documents of a file; decisions and seconds."""

import json
import sys
import time
from itertools import islice
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)


def main() -> None:
    path, n = sys.argv[1], int(sys.argv[2])
    with Path(path).open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, n)]
    filters = {
        "gopher_quality": GopherQualityFilter(),
        "gopher_repetition": GopherRepetitionFilter(),
        "c4": C4QualityFilter(),
        "fineweb": FineWebQualityFilter(),
    }
    for made in filters.values():
        made.filter(Document(text="One sentence to load what is loaded late.", id="0"))
    started = time.perf_counter()
    reasons: dict[str, list[str]] = {}
    for name, made in filters.items():
        said = []
        for text in texts:
            try:
                found = made.filter(Document(text=text, id="0"))
            except (ZeroDivisionError, ValueError) as error:
                found = (False, f"error: {error}")
            said.append("" if found is True else found[1])
        reasons[name] = said
    seconds = time.perf_counter() - started
    print(json.dumps({"reasons": reasons, "seconds": seconds, "bytes": sum(len(t.encode()) for t in texts)}))


main()
