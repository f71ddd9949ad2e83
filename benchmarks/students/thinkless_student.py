"""Run by ThinkLess's own Python: learn recorded chat calls with its settings, then look at the test calls."""

import json
import sys
import time
from pathlib import Path

from thinkless.habits import Habits
from thinkless.habits.learn import LearnOptions, learn


def body(system: str, text: str) -> dict:
    return {"model": "large", "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}]}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    root = Path(job["folder"]) / "habits"
    log = Path(job["folder"]) / "calls.jsonl"
    with log.open("w", encoding="utf-8") as file:
        for text, answer in job["train"]:
            record = body(job["system"], text)
            record["messages"].append({"role": "assistant", "content": answer})
            file.write(json.dumps(record) + "\n")
    started = time.perf_counter()
    # No probation: the student may answer as soon as its own gate lets it.
    options = LearnOptions(target=job["level"], confirm_calls=0, max_calls=len(job["train"]))
    plan = learn(root, calls=[log], options=options)
    seconds = time.perf_counter() - started
    habits = Habits(root, target=job["level"], audit=0.0, learn_every=None, confirm_calls=0)
    local, said = [], []
    for text, _ in job["test"]:
        ticket = habits.begin(body(job["system"], text))
        answer = ticket.response if ticket is not None else None
        local.append(answer is not None)
        said.append(answer["choices"][0]["message"]["content"] if answer else "")
    status = [site["status"] for site in plan["sites"].values()]
    print(json.dumps({"seconds": seconds, "local": local, "said": said, "status": status}))


main()
