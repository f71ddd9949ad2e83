"""Run by datasketch's own Python: MinHash and LSH of datasketch, and of rensa, over the corpus; recall and speed."""

import json
import re
import sys
import time
from pathlib import Path

from datasketch import MinHash, MinHashLSH
from rensa import RMinHash, RMinHashLSH

WORD = re.compile(r"\w+")


def meet(a, b, bands: int) -> bool:
    return bool((a.reshape(bands, -1) == b.reshape(bands, -1)).all(axis=1).any())


def main() -> None:
    folder, about, n_bands, n_rows, n_gram, limit, n_draws = sys.argv[1:]
    bands, rows, size, limit = int(n_bands), int(n_rows), int(n_gram), int(limit)
    pairs = json.loads(Path(about).read_text(encoding="utf-8"))["pairs"]
    wanted = {}
    texts = []
    for path in sorted(Path(folder).glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                texts.append(json.loads(line)["text"])
    planted = {i for found in pairs.values() for pair in found for i in pair}
    few = sorted(planted)[:limit]
    kept = set(few)

    def grams(text: str) -> list[str]:
        words = WORD.findall(text.lower())
        return [" ".join(words[i : i + size]) for i in range(max(len(words) - size + 1, 1))]

    started = time.perf_counter()
    lsh = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    signed = {}
    for i in few:
        m = MinHash(num_perm=bands * rows)
        m.update_batch([g.encode() for g in grams(texts[i])])
        signed[i] = m
        lsh.insert(i, m)
        lsh.query(m)
    seconds = time.perf_counter() - started
    n_bytes = sum(len(texts[i].encode()) for i in few)
    draws = [signed]
    for seed in range(2, int(n_draws) + 1):
        again = {}
        for i in few:
            again[i] = MinHash(num_perm=bands * rows, seed=seed)
            again[i].update_batch([g.encode() for g in grams(texts[i])])
        draws.append(again)
    for level, found in pairs.items():
        known = [(a, b) for a, b in found if a in kept and b in kept]
        if known:
            hits = [meet(draw[a].hashvalues, draw[b].hashvalues, bands) for draw in draws for a, b in known]
            wanted[level] = sum(hits) / len(hits)
    started = time.perf_counter()
    other = RMinHashLSH(threshold=0.7, num_perm=bands * rows, num_bands=bands)
    for i in few:
        m = RMinHash(num_perm=bands * rows, seed=1)
        m.update(grams(texts[i]))
        other.insert(i, m)
        other.query(m)
    rensa = n_bytes / (time.perf_counter() - started) / 1e6
    print(json.dumps({"recall": wanted, "mb_per_s": {"datasketch": n_bytes / seconds / 1e6, "rensa": rensa}}))


main()
