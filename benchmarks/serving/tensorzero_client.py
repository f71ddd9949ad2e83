"""Load TensorZero's embedded gateway; run by its own interpreter, see ``peers.py``.

Usage: ``python tensorzero_client.py CONFIG CONCURRENCY SECONDS STREAM``; prints one JSON object.
"""

import asyncio
import json
import os
import sys
import time

from tensorzero import AsyncTensorZeroGateway

SYSTEM = "Classify the customer's message into one of the bank's intents. Answer with the intent's name only. " * 12


async def _one(client, index: int, stream: bool) -> None:
    question = {
        "system": SYSTEM,
        "messages": [{"role": "user", "content": f"My new card has not arrived. ({index:09d})"}],
    }
    result = await client.inference(
        model_name="bench", input=question, stream=stream, params={"chat_completion": {"temperature": 0}}
    )
    if stream:
        async for _ in result:
            pass


async def _main(config: str, concurrency: int, seconds: float, stream: bool) -> None:
    client = await AsyncTensorZeroGateway.build_embedded(config_file=config, async_setup=True)
    latencies: list[float] = []
    deadline = time.perf_counter() + seconds

    async def keep_busy() -> None:
        while (start := time.perf_counter()) < deadline:
            await _one(client, len(latencies), stream)
            latencies.append(time.perf_counter() - start)

    await _one(client, 0, stream)
    start = time.perf_counter()
    await asyncio.gather(*(keep_busy() for _ in range(concurrency)))
    took = time.perf_counter() - start
    latencies.sort()
    print(
        json.dumps(
            {
                "calls_per_s": len(latencies) / took,
                "p50_ms": latencies[len(latencies) // 2] * 1e3,
                "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
                "n": len(latencies),
            }
        )
    )
    sys.stdout.flush()
    # Its threads may abort the process while the interpreter shuts down.
    os._exit(0)


asyncio.run(_main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "stream"))
