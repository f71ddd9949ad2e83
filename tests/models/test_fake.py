from __future__ import annotations

import pytest

from pilotfish.errors import InputError, UpstreamError
from pilotfish.models.fake import FakeModel
from pilotfish.types import Reply, Request


def _texts(model: FakeModel, *prompts: str) -> list[str]:
    return [reply.text for reply in model.generate([Request.of(prompt) for prompt in prompts])]


def test_scripts_of_every_form() -> None:
    assert _texts(FakeModel("same"), "a", "b") == ["same", "same"]
    assert _texts(FakeModel({"a": "1", "b": "2"}), "b", "a") == ["2", "1"]
    assert _texts(FakeModel(lambda request: request.prompt.upper()), "a", "b") == ["A", "B"]
    model = FakeModel(["1", Reply("2", confidence=0.5), UpstreamError("down"), "4"])
    assert _texts(model, "a", "b") == ["1", "2"]
    with pytest.raises(UpstreamError, match="down"):
        _texts(model, "c")
    assert _texts(model, "d") == ["4"]
    with pytest.raises(InputError, match="further call"):
        _texts(model, "e")
    assert [call.prompt for call in model.calls] == ["a", "b", "c", "d", "e"]
    with pytest.raises(InputError, match="no reply to 'z'"):
        _texts(FakeModel({}), "z")


def test_what_a_reply_states() -> None:
    model = FakeModel("one two three", confidence=0.7, log_prob=-0.1, prompt_price=1e6, completion_price=2e6)
    (reply,) = model.generate([Request.of("a b c d", log_probs=0, max_tokens=2)])
    assert reply.text == "one two "
    assert reply.finish_reason == "length"
    assert [t.token for t in reply.log_probs] == ["one ", "two "]
    assert reply.confidence == 0.7
    assert reply.usage.cost == 4 + 2 * 2
    assert list(model.stream(Request.of("x", stop=("three",)))) == ["one ", "two "]
