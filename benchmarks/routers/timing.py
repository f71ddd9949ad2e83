"""Time of one routing decision on prompts of about 500 tokens, one at a time, on one core."""

from __future__ import annotations

import time
from collections.abc import Sequence

from threadpoolctl import threadpool_limits

from pilotfish.scorers.quality import QualityScorer

# 340 words of these questions are 441 to 595 tokens of all-minilm-l6-v2, 515 in the middle.
_WORDS = 340
_N_PROMPTS = 30


def long_prompts(queries: Sequence[str]) -> list[str]:
    """Distinct prompts of about 500 tokens made of the words of short ones."""
    words = " ".join(queries[:400]).split()
    return [" ".join(words[k * _WORDS : (k + 1) * _WORDS]) for k in range(_N_PROMPTS)]


def milliseconds(router: QualityScorer, prompts: Sequence[str]) -> list[float]:
    """Milliseconds of each of four decisions per prompt."""
    times = []
    with threadpool_limits(1):
        router.predict(prompts[:1])
        for prompt in [*prompts] * 4:
            started = time.perf_counter()
            router.predict([prompt])
            times.append((time.perf_counter() - started) * 1000)
    return times
