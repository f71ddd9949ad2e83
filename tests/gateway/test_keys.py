"""Gateway keys and budgets."""

from __future__ import annotations

import time

import pytest

from pilotfish.gateway.config import KeyConfig
from pilotfish.gateway.keys import Budgets, Keyring, hash_key, new_key
from pilotfish.traffic.rows import day_of
from tests.gateway.rig import answer, whole

PRICES = {"large": {"input": 0.0, "output": 1_000_000.0}}


@pytest.fixture
def team():
    key, hashed = new_key()
    return key, {"team": {"hash": hashed}}


def test_a_key_is_asked_for(start, upstream, team):
    key, keys = team
    run = start(keys=keys, upstream={"api_key": "sk-upstream"})
    for headers in (
        [],
        [("Authorization", "Bearer pf-wrong")],
        [("Authorization", key)],
        [("Authorization", "Basic x")],
    ):
        got = run.chat(headers=headers)
        assert (got.status, got.data["error"]["code"]) == (401, "invalid_api_key")
        assert key not in got.body.decode()
        assert "pf-wrong" not in got.body.decode()
    assert upstream.received == []
    assert run.call("GET", "/v1/models").status == 401
    assert run.call("POST", "/v1/feedback", b"{}").status == 401
    assert run.call("GET", "/healthz").status == 200
    for _ in range(2):
        assert run.chat(headers=[("Authorization", f"Bearer {key}")]).status == 200
    assert [r.header("authorization") for r in upstream.received] == [[b"Bearer sk-upstream"]] * 2
    assert [call.key_id for call in run.calls(2)] == ["team", "team"]


def test_a_gateway_key_never_leaves(start, upstream, team):
    key, keys = team
    run = start(keys=keys)
    assert run.chat(headers=[("Authorization", f"Bearer {key}")]).status == 200
    assert upstream.received[0].header("authorization") == []
    run.calls()
    stored = b"".join(path.read_bytes() for path in run.config.log.path.parent.glob("traffic.db*"))
    assert key.encode() not in stored


def test_a_budget_is_kept(start, upstream, team):
    key, keys = team
    upstream.replies(whole(answer(usage={"prompt_tokens": 1, "completion_tokens": 1})))
    run = start(
        keys={"team": {**keys["team"], "budget_usd_per_day": 2.5}}, prices=PRICES, log={"durability": "durable"}
    )
    headers = [("Authorization", f"Bearer {key}")]
    statuses = [run.chat(headers=headers).status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    got = run.chat(headers=headers)
    assert got.data["error"]["code"] == "insufficient_quota"
    unpriced = run.chat(headers=headers, model="other")
    assert (unpriced.status, unpriced.data["error"]["code"]) == (400, "model_without_price")
    run.stop()
    again = start(keys={"team": {**keys["team"], "budget_usd_per_day": 2.5}}, prices=PRICES)
    assert again.chat(headers=headers).status == 429


def test_a_new_day_brings_a_new_budget(start, upstream, team, monkeypatch):
    key, keys = team
    upstream.replies(whole(answer(usage={"prompt_tokens": 1, "completion_tokens": 1})))
    run = start(keys={"team": {**keys["team"], "budget_usd_per_day": 1.0}}, prices=PRICES)
    headers = [("Authorization", f"Bearer {key}")]
    assert run.chat(headers=headers).status == 200
    run.calls()
    assert run.chat(headers=headers).status == 429
    now = time.time
    monkeypatch.setattr("pilotfish.gateway.keys.time.time", lambda: now() + 86_400)
    assert run.chat(headers=headers).status == 200


def test_hashes_are_salted_and_known_keys_remembered():
    key, hashed = new_key()
    assert key not in hashed
    assert hash_key(key, "0" * 32) != hash_key(key, "1" * 32)
    ring = Keyring({"a": KeyConfig(hash=new_key()[1]), "b": KeyConfig(hash=hashed)})
    assert ring.name_of(b"Bearer " + key.encode()) == "b"
    ring.hashes.clear()
    assert ring.name_of(b"Bearer " + key.encode()) == "b"
    assert ring.name_of(b"Bearer other") is None
    assert key.encode() not in b"".join(ring._known)


def test_what_was_spent_here_stays_spent_until_the_log_has_it():
    class Log:
        def spent(self, name, now):
            budgets.add(name, 1.0)  # a call ends while the sums are being read
            return 0.0

    budgets = Budgets(Log(), {"team": KeyConfig(hash=new_key()[1], budget_usd_per_day=1.0)})
    budgets.accounts["team"].day = day_of(time.time())
    budgets.refresh()
    assert budgets.exceeded("team")
