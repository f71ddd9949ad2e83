"""The main job over HTTP: calls in, a certified student answers, feedback and drift come back."""

from __future__ import annotations

import random
import time

import pytest

from pilotfish.gateway import GatewayConfig
from pilotfish.takeover import Target
from pilotfish.takeover.service import Takeover
from pilotfish.traffic import TrafficLog
from tests.gateway.rig import Scripted, answer, running, whole
from tests.takeover.students import WordStudent
from tests.takeover.test_service import FILLER, WORDS

SYSTEM = "You are the front desk of a shop. Answer with exactly one intent from the list, nothing else."


@pytest.fixture
def upstream():
    scripted = Scripted()
    truth = dict(WORDS)

    async def script(received, reader, writer):
        word = received.data["messages"][-1]["content"].split()[-1]
        writer.write(whole(answer(truth.get(word, "something else"))))

    scripted.script = script
    scripted.truth = truth  # type: ignore[attr-defined]
    yield scripted
    scripted.close()


def test_the_life_of_a_task_through_the_openai_client(tmp_path, upstream):
    import openai

    config = GatewayConfig.model_validate(
        {
            "server": {"port": 0},
            "upstream": {"base_url": upstream.url},
            "log": {"path": tmp_path / "t.db", "durability": "fast"},
            "student": {"timeout_s": 5.0},
        }
    )
    settings = {"target": Target("system", 0.9), "audit_share": 0.3, "seed": 0}

    def make(log: TrafficLog) -> Takeover:
        return Takeover(log, tmp_path / "students", WordStudent, **settings)  # type: ignore[arg-type]

    rng = random.Random(0)
    with running(config, answerer=make) as run, openai.OpenAI(base_url=run.url, api_key="x", max_retries=0) as client:

        def ask() -> dict[str, str]:
            text = " ".join([*rng.sample(FILLER, 3), rng.choice(list(WORDS))])
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
            raw = client.chat.completions.with_raw_response.create(model="large", messages=messages)  # type: ignore[arg-type]
            said = raw.parse().choices[0].message.content
            return {"said": str(said), "by": raw.headers["x-pilotfish-answered-by"], "text": text}

        for _ in range(300):
            assert ask()["by"] == "upstream"
        with TrafficLog(config.log.path) as log:
            offline = make(log)
            deadline = time.monotonic() + 10
            while not offline.states() and time.monotonic() < deadline:
                time.sleep(0.05)
            (task,) = offline.states()
            assert offline.learn(task).certificate.ok
            offline.promote(task)
        time.sleep(0.3)
        live = [ask() for _ in range(100)]
        local = [a for a in live if a["by"] == "student:v1"]
        assert len(local) > 50
        assert all(a["said"] == WORDS[a["text"].split()[-1]] for a in local)
        words = list(upstream.truth)
        upstream.truth.update(zip(words, [WORDS[w] for w in [*words[1:], words[0]]], strict=True))
        wrong = 0
        for _ in range(300):
            got = ask()
            wrong += got["by"] != "upstream"
        assert wrong < 60
        assert ask()["by"] == "upstream"
    with TrafficLog(config.log.path) as log:
        state = make(log).state(task)
        assert state.phase == "rolled_back"
        assert "disagree" in state.reason
        audited = [c for c in log.calls(answered_by="student") if c.audit is not None]
        assert audited
        assert all(c.sampled for c in audited)
