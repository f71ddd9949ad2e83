"""Routes behind the gateway: served by name, while they are fitted, with limits, warm caches and whole calls."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from pilotfish.errors import InputError
from pilotfish.gateway.config import RouteConfig
from pilotfish.gateway.keys import new_key
from pilotfish.gateway.routes import Warm
from pilotfish.methods.build import Route
from pilotfish.models.fake import FakeModel
from pilotfish.traffic.table import ReplyTable
from pilotfish.types import Message, Reply, Request
from tests.gateway.rig import answer, whole

EASY, HARD = "question 99 easy", "question 99 hard"
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
PICTURE = [
    {"role": "user", "content": [{"type": "text", "text": EASY}, {"type": "image_url", "image_url": {"url": "x"}}]}
]


def make_table(n=80):
    kinds = ["hard" if i % 2 else "easy" for i in range(n)]
    return ReplyTable.of(
        [f"question {i} {kind}" for i, kind in enumerate(kinds)],
        {"cheap": [float(kind == "easy") for kind in kinds], "dear": [1.0] * n},
        {"cheap": 0.001, "dear": 0.01},
        replies={"cheap": ["easy"] * n, "dear": kinds},
    )


@pytest.fixture
def route(tmp_path):
    make_table().to_jsonl(tmp_path / "t.jsonl")
    return {"policy": "orchestra_llm", "table": str(tmp_path / "t.jsonl"), "budget": "6usd/1k"}


def ready(run):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        health = run.call("GET", "/healthz").data
        if "being fitted" not in health["routes"].values():
            return health
        time.sleep(0.02)
    raise AssertionError(health)


def test_a_route_by_name_chooses_among_models_and_says_why(start, upstream, route, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")
    upstream.replies(whole(answer("from afar")))
    run = start(routes={"smart": route}, prices={"cheap": {"input": 1.0, "output": 10.0}})
    assert ready(run)["routes"] == {"smart": "ready"}
    for prompt, chosen in ((EASY, "cheap"), (HARD, "dear")):
        reply = run.chat(prompt, model="smart")
        assert reply.status == 200, reply.body
        assert reply.data["model"] == "smart"
        assert upstream.received[-1].data["model"] == chosen
        assert reply.header("x-pilotfish-reason").startswith(f"router: {chosen} predicted")
    assert not any(received.header("authorization") for received in upstream.received)
    cheap, dear = run.calls(2)
    assert (cheap.cost, dear.cost) == (pytest.approx(42e-6), 0.0)
    assert cheap.reason.startswith("router: cheap predicted")


@pytest.mark.parametrize(
    ("n", "more"),
    [
        (160, {"policy": "selective_query"}),
        (24, {"policy": "automix", "options": {"n_samples": 1}}),
        (160, {"level": 0.3}),
    ],
)
def test_trained_heads_live_verifiers_and_certified_levels_are_configured(start, upstream, tmp_path, n, more):
    make_table(n).to_jsonl(tmp_path / "t.jsonl")
    upstream.replies(whole(answer("easy")))
    table = str(tmp_path / "t.jsonl")
    run = start(routes={"smart": {"policy": "route_llm", "table": table, "budget": "20usd/1k", **more}})
    assert ready(run)["status"] == "ok"
    reply = run.chat("question 200 easy", model="smart")
    assert reply.status == 200, reply.body
    assert b"easy" in reply.body


def test_the_last_model_answers_until_a_route_is_fitted(start, upstream, route, monkeypatch):
    go_on = threading.Event()

    def slow(*given):
        go_on.wait(20)
        return Route(*given)

    monkeypatch.setattr("pilotfish.methods.build.Route", slow)
    run = start(routes={"smart": route})
    reply = run.chat(EASY, model="smart")
    assert upstream.received[-1].data["model"] == "dear"
    assert "being fitted" in reply.header("x-pilotfish-reason")
    go_on.set()
    ready(run)
    run.chat(EASY, model="smart")
    assert upstream.received[-1].data["model"] == "cheap"


def test_a_route_that_cannot_be_fitted_is_told_of(start, route, caplog):
    run = start(routes={"smart": {**route, "level": 1e-4}})
    health = ready(run)
    assert health["status"] == "degraded"
    assert "is certified to keep to" in health["routes"]["smart"]
    reply = run.chat(EASY, model="smart")
    assert reply.status == 500
    assert "mend its section" in reply.data["error"]["message"]
    assert "Route 'smart' could not be fitted" in caplog.text


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"saved": "a", "policy": "forc"}, "saved goes without policy"),
        ({"policy": "forc", "budget": "1"}, "table is missing"),
        ({}, "policy is missing"),
    ],
)
def test_a_section_is_whole(section, said):
    with pytest.raises(ValueError, match=said):
        RouteConfig.model_validate(section)


@pytest.mark.parametrize("policy", ["kernel_router", "route_llm"])
def test_what_the_command_line_saved_is_served(start, upstream, tmp_path, route, policy):
    from pilotfish.gateway.config import GatewayConfig
    from pilotfish.gateway.local import make_models

    models = {"cheap": FakeModel(), "dear": FakeModel()}
    made = Route({"policy": policy, "budget": "6usd/1k"}, make_table(), models)
    place = tmp_path / ("router.npz" if policy == "kernel_router" else "route")
    (made.model if policy == "kernel_router" else made).save(place)
    run = start(routes={"smart": {"saved": str(place)}})
    ready(run)
    for prompt, chosen in ((EASY, "cheap"), (HARD, "dear")):
        assert run.chat(prompt, model="smart").status == 200
        assert upstream.received[-1].data["model"] == chosen
    wrong = {"routes": {"smart": {"saved": str(place), "limits": {"huge": {"context": 9}}}}}
    with pytest.raises(InputError, match=r"In routes\.smart: limits names 'huge'"):
        make_models(GatewayConfig.model_validate(wrong))


def test_a_model_that_was_added_later_answers_and_has_its_limits(start, upstream, tmp_path):
    models = {name: FakeModel() for name in ("cheap", "dear", "new")}
    made = Route({"policy": "orchestra_llm", "budget": "6usd/1k"}, make_table(), models)
    labels = [(f"question {i} {'hard' if i % 2 else 'easy'}", float(i % 2)) for i in range(40)]
    table = ReplyTable.of([q for q, _ in labels], {"new": [s for _, s in labels]}, {"new": 0.0015})
    made.add_model("new", models["new"], table)
    made.save(tmp_path / "route")
    run = start(routes={"smart": {"saved": str(tmp_path / "route"), "limits": {"new": {"tools": False}}}})
    ready(run)
    for prompt, chosen, more in ((EASY, "cheap", {}), (HARD, "new", {}), (HARD, "dear", {"tools": TOOLS})):
        assert run.chat(prompt, model="smart", **more).status == 200
        assert upstream.received[-1].data["model"] == chosen


@pytest.mark.parametrize("policy", ["orchestra_llm", "route_llm", "calibrated_cascade"])
def test_a_model_is_not_asked_what_it_cannot_take(start, upstream, route, policy):
    limits = {"cheap": {"context": 30, "tools": False, "images": False}}
    run = start(routes={"smart": {**route, "policy": policy, "limits": limits}})
    ready(run)
    for chosen, fields in (
        ("cheap", {}),
        ("dear", {"tools": TOOLS}),
        ("dear", {"messages": PICTURE}),
        ("dear", {"max_tokens": 50}),
    ):
        upstream.replies(whole(answer("easy")))
        n_before = len(upstream.received)
        assert run.chat(EASY, model="smart", **fields).status == 200
        if policy != "calibrated_cascade" or chosen == "dear":
            assert [got.data["model"] for got in upstream.received[n_before:]] == [chosen]
        sent = upstream.received[-1].data
        assert all(sent[name] == value for name, value in fields.items())


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_reach_the_openai_client(start, upstream, route, stream):
    import openai

    calls = [{"id": f"call_{k}", "type": "function", "function": {"name": "find", "arguments": "{}"}} for k in (0, 1)]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    upstream.replies(whole(answer(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}])))
    run = start(routes={"smart": route})
    asked = {"model": "smart", "messages": [{"role": "user", "content": EASY}], "tools": TOOLS}
    with openai.OpenAI(base_url=run.url, api_key="none", max_retries=0) as client:
        if stream:
            chunks = list(client.chat.completions.create(**asked, stream=True))
            got = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
            assert [call.index for call in got] == [0, 1]
            assert chunks[-1].choices[0].finish_reason == "tool_calls"
        else:
            choice = client.chat.completions.create(**asked).choices[0]
            got = choice.message.tool_calls
            assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert [call.id for call in got] == ["call_0", "call_1"]
    assert upstream.received[-1].data["tools"] == TOOLS


def test_a_conversation_stays_where_its_prompt_is_cached(start, upstream, route):
    upstream.replies(whole(answer("hard")))
    # 11,000 tokens of history cost either model $0.0114 afresh, the dear one $0.0011 warm.
    prices = {
        "cheap": {"input": 1.0, "output": 0.0},
        "dear": {"input": 1.0, "cached_input": 0.1, "output": 0.0},
    }
    run = start(routes={"smart": {**route, "policy": "kernel_router"}}, prices=prices)
    ready(run)
    first = {"role": "user", "content": f"{'long ' * 8000}"}
    turns = [first, {"role": "user", "content": HARD}, {"role": "assistant", "content": "hard"}]
    asked = [*turns, {"role": "user", "content": EASY}]
    assert run.chat(model="smart", messages=asked).status == 200
    assert upstream.received[-1].data["model"] == "cheap"
    assert run.chat(model="smart", messages=turns[:2]).status == 200
    assert upstream.received[-1].data["model"] == "dear"
    assert run.chat(model="smart", messages=asked).status == 200
    assert upstream.received[-1].data["model"] == "dear"


def test_caches_cool_down():
    now = [0.0]
    warm = Warm(seconds=10.0, clock=lambda: now[0])
    call = {"id": "call_1"}
    warm.note(Request.of("Hi"), Reply("", "dear", extra={"tool_calls": [call]}))
    turn = Message("assistant", "", {"tool_calls": [call]})
    again = Request((Message("user", "Hi"), turn, Message("tool", "3")))
    assert warm.told(again).metadata["answered_by"] == "dear"
    other = Request((Message("user", "Hi"), Message("assistant", ""), Message("tool", "3")))
    assert not warm.told(other).metadata
    now[0] = 11.0
    assert not warm.told(again).metadata


@pytest.mark.parametrize("status", [429, 400, 503])
def test_the_endpoints_refusal_keeps_its_status(start, upstream, route, status):
    upstream.replies(whole(b'{"error": {"message": "Not so."}}', status))
    run = start(routes={"smart": route})
    reply = run.chat(EASY, model="smart")
    assert reply.status == status
    assert "Not so." in reply.data["error"]["message"]


@pytest.mark.parametrize(("status", "with_fallback"), [(200, False), (503, False), (503, True)])
def test_the_log_counts_all_that_a_route_asks(start, upstream, tmp_path, status, with_fallback):
    """Two verifications of the weak answer, and both answers; a strong model that fails takes nothing back."""

    async def script(received, reader, writer):
        asked = received.data["messages"][-1]["content"]
        says = "No" if "Is the proposed answer correct?" in asked else "easy"
        writer.write(whole(answer(says), status if received.data["model"] == "dear" else 200))

    upstream.script = script
    settings = {"policy": "automix", "budget": 1.0, "options": {"n_samples": 2, "planned": False}, "chosen": [0.5]}
    models = {"cheap": FakeModel("No"), "dear": FakeModel()}
    Route(settings, make_table(24), models).save(tmp_path / "route")
    fallback = {"fallback": {"base_url": upstream.url, "model": "cheap"}} if with_fallback else {}
    prices = {"cheap": {"input": 1.0, "output": 10.0}, "dear": {"input": 100.0, "output": 1000.0}}
    run = start(routes={"smart": {"saved": str(tmp_path / "route")}}, prices=prices, **fallback)
    ready(run)
    upstream.received.clear()
    assert run.chat(EASY, model="smart").status == (200 if with_fallback else status)
    sent = [got.data["model"] for got in upstream.received]
    assert sent == ["cheap"] * 3 + ["dear"] + ["cheap"] * with_fallback
    [call] = run.calls()
    assert call.cost == pytest.approx(42e-6 * sent.count("cheap") + 4200e-6 * (status == 200))
    assert run.metric("pilotfish_cost_usd_total") == pytest.approx(call.cost)


def test_what_a_route_warns_of_is_logged(start, upstream, route, tmp_path, caplog):
    table = make_table()
    unscored = table.scores.copy()
    unscored[0, 0] = float("nan")
    replace(table, scores=unscored).to_jsonl(tmp_path / "t.jsonl")
    ready(start(routes={"smart": route}, prices={"cheap": {"input": 1.0, "output": 10.0}}))
    assert "Route 'smart': Left out 1 queries that some model has no score for." in caplog.text
    assert "Route 'smart': calls of dear count as $0, for want of a section [prices.NAME]." in caplog.text


@pytest.mark.parametrize("prices", [("cheap", "dear"), ("dear",)])
def test_a_key_with_a_budget_may_ask_a_route_whose_models_are_priced(start, upstream, route, prices):
    upstream.replies(whole(answer("from afar")))
    key, hashed = new_key()
    run = start(
        routes={"smart": route},
        keys={"team": {"hash": hashed, "budget_usd_per_day": 25e-6}},
        prices={name: {"input": 0.0, "output": 10.0} for name in prices},
        log={"durability": "durable"},
    )
    ready(run)
    asked = [run.chat(EASY, model="smart", headers=[("authorization", f"Bearer {key}")]) for _ in range(2)]
    if "cheap" in prices:
        assert [reply.status for reply in asked] == [200, 429]
        assert run.calls()[0].cost == pytest.approx(30e-6)
    else:
        assert asked[0].status == 400
        assert "Model 'cheap' has no price" in asked[0].data["error"]["message"]
