"""The real client, sync and async, against the gateway."""

from __future__ import annotations

import asyncio

import openai
import orjson
import pytest

from tests.gateway.rig import STREAM_HEAD, answer, chunk, events, whole
from tests.gateway.test_students import Fake

MESSAGES = [{"role": "system", "content": "Name the intent."}, {"role": "user", "content": "Where is my card?"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def client(start):
    run = start(log={"durability": "durable"})
    with openai.OpenAI(base_url=run.url, api_key="sk-test", max_retries=0) as client:
        client.run = run
        yield client


def test_sync(client, upstream):
    completion = client.chat.completions.create(model="large", messages=MESSAGES, temperature=0)
    assert completion.choices[0].message.content == "card_arrival"
    assert completion.usage.total_tokens == 15
    assert upstream.received[0].header("authorization") == [b"Bearer sk-test"]
    raw = client.chat.completions.with_raw_response.create(model="large", messages=MESSAGES)
    assert raw.headers["x-pilotfish-answered-by"] == "upstream"
    assert client.run.calls(2)[1].id == raw.headers["x-pilotfish-call"]


def test_stream(client, upstream):
    parts = events(
        {"role": "assistant", "content": "card_"},
        {"content": "arrival"},
        usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    )
    upstream.replies(STREAM_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")
    with client.chat.completions.create(
        model="large", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ) as stream:
        got = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in got if c.choices) == "card_arrival"
    assert got[-1].usage.total_tokens == 3
    assert client.run.calls()[0].answer == "card_arrival"


def test_tools(client, upstream):
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    upstream.replies(whole(answer(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}])))
    completion = client.chat.completions.create(model="large", messages=MESSAGES, tools=[TOOL], tool_choice="auto")
    assert completion.choices[0].message.tool_calls[0].function.name == "look"
    assert upstream.received[0].data["tools"] == [TOOL]
    tool_result = {"role": "tool", "tool_call_id": "call_1", "content": "found"}
    client.chat.completions.create(model="large", messages=[*MESSAGES, message, tool_result], tools=[TOOL])
    assert upstream.received[1].data["messages"][-1] == tool_result


def test_streamed_tools(client, upstream):
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
    deltas = [
        {"role": "assistant", "tool_calls": [first]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ]
    upstream.replies(STREAM_HEAD + b"".join(map(chunk, events(*deltas))) + b"0\r\n\r\n")
    with client.chat.completions.stream(model="large", messages=MESSAGES, tools=[TOOL]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == "{}"


def test_other_endpoints(client, upstream):
    data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
    upstream.replies(
        whole(
            orjson.dumps(
                {"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
            )
        )
    )
    assert client.embeddings.create(model="e", input="x", encoding_format="float").data[0].embedding == [0.5, 0.25]
    upstream.replies(whole(b'{"object":"list","data":[{"id":"large","object":"model","created":1,"owned_by":"x"}]}'))
    assert [model.id for model in client.models.list()] == ["large"]
    output = [
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hi", "annotations": []}],
        }
    ]
    upstream.replies(
        whole(
            orjson.dumps(
                {
                    "id": "resp_1",
                    "object": "response",
                    "created_at": 1,
                    "model": "m",
                    "output": output,
                    "status": "completed",
                }
            )
        )
    )
    assert client.responses.create(model="m", input="x").output_text == "hi"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_errors(client, upstream, status, kind):
    upstream.replies(whole(b'{"error": {"message": "no good", "type": "t", "param": "p", "code": "c"}}', status))
    with pytest.raises(kind, match="no good") as caught:
        client.chat.completions.create(model="large", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("c", "p")


def test_the_gateways_own_errors(client, upstream):
    with pytest.raises(openai.BadRequestError, match="'messages'"):
        client.chat.completions.create(model="large", messages=[])
    upstream.stop()
    with pytest.raises(openai.InternalServerError, match="cannot be reached"):
        client.chat.completions.create(model="large", messages=MESSAGES)


def test_half_a_stream_raises(client, upstream):
    async def script(received, reader, writer):
        writer.write(STREAM_HEAD + chunk(events({"role": "assistant", "content": "half"})[0]))
        await writer.drain()
        writer.close()

    upstream.script = script
    with (
        pytest.raises(Exception, match=r"incomplete|peer closed|Connection"),
        client.chat.completions.create(model="large", messages=MESSAGES, stream=True) as stream,
    ):
        list(stream)


def test_async(start, upstream):
    run = start(log={"durability": "durable"})

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=run.url, api_key="x", max_retries=0) as client:

            async def one(i: int) -> str:
                prompt = [{"role": "user", "content": str(i)}]
                return (await client.chat.completions.create(model="large", messages=prompt)).choices[0].message.content

            assert await asyncio.gather(*map(one, range(40))) == ["card_arrival"] * 40
            parts = events({"role": "assistant", "content": "a"}, {"content": "b"})
            upstream.replies(STREAM_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")
            stream = await client.chat.completions.create(model="large", messages=MESSAGES, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "ab"

    asyncio.run(main())
    assert sorted(int(call.prompt) for call in run.calls(41)[:40]) == list(range(40))


def test_local_answers(start):
    run = start(Fake())
    with openai.OpenAI(base_url=run.url, api_key="x") as client:
        completion = client.chat.completions.create(model="large", messages=MESSAGES)
        assert (completion.choices[0].message.content, completion.usage.total_tokens) == ("student says", 9)
        with client.chat.completions.create(
            model="large", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ) as stream:
            got = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in got if c.choices) == "student says"
    assert got[-1].usage.total_tokens == 9
