"""Sessions keep their state through rewinding, forks and failures."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from pilotfish.decoding.decoder import Decoder, fuse, speculate
from pilotfish.decoding.drafting import EarlyExit
from pilotfish.decoding.fusion import Contrastive
from pilotfish.errors import ContextLengthError, InputError, ModelError
from pilotfish.models.sessions import FunctionSession, TorchSession
from pilotfish.models.transformers import TransformersModel
from pilotfish.types import Request
from tests.decoding.small import random_model, tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    return TransformersModel(tiny_model(tmp_path_factory.mktemp("sessions") / "tiny"))


def test_rewinding_and_forking_leave_no_trace(tiny: TransformersModel) -> None:
    rng = np.random.default_rng(0)
    for session in (tiny.session(), random_model(0).session()):
        n = 9 if isinstance(session, FunctionSession) else 29
        text: list[int] = []
        for _ in range(30):
            new = rng.integers(0, n - 1, size=int(rng.integers(1, 4))).tolist()
            rows = session.extend(new).log_probs()
            text += new
            twin = session.fork()
            twin.extend([1, 2])
            twin.rewind(2)
            fresh = tiny.session() if n == 29 else random_model(0).session()
            assert fresh.extend(text, len(new)).log_probs() == pytest.approx(rows, abs=1e-4)
            back = int(rng.integers(0, min(3, len(text) - 1) + 1))
            session.rewind(back)
            del text[len(text) - back :]
            assert session.n_tokens == len(text)
            assert twin.n_tokens == len(text) + back


def test_a_tree_is_read_as_its_branches_are(tiny: TransformersModel) -> None:
    """Rows of a tree are those of each branch read alone, and what is kept is as if nothing else had been read."""
    branches, parents = [5, 6, 7, 8, 4, 3], [-1, 0, -1, 2, 0, 3]
    paths = [[5], [5, 6], [7], [7, 8], [5, 4], [7, 8, 3]]

    def after(model: Any, tokens: list[int]) -> Any:
        return pytest.approx(model.session().extend(tokens, 1).log_probs()[0], abs=1e-4)

    for model in (tiny, random_model(2)):
        session, text = model.session(), [1, 2]
        session.extend(text)
        for kept, unread in (([0, 1], [3, 1]), ([2, 3, 5], [6]), ([], [2]), ([0, 4], [7])):
            text += unread
            rows = session.extend_tree(unread, branches, parents).log_probs()
            for row, path in zip(rows, [[], *paths], strict=True):
                assert row == after(model, [*text, *path])
            twin = session.fork()
            session.keep(6, kept)
            twin.rewind(6)
            assert twin.extend([2], 1).log_probs()[0] == after(model, [*text, 2])
            text += [branches[i] for i in kept]
            assert session.n_tokens == len(text)
            assert session.fork().extend([2], 1).log_probs()[0] == after(model, [*text, 2])


@pytest.mark.parametrize("text", [[], [3, 4, 5]])
def test_a_pass_without_memory_leaves_the_state(tiny: TransformersModel, text: list[int]) -> None:
    _, network = tiny._parts()
    session = tiny.session()
    if text:
        session.extend(text)
    layer = network.model.layers[1]
    whole = layer.forward

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")

    layer.forward = fail
    try:
        with pytest.raises(ModelError, match="memory does not suffice"):
            session.extend([6, 7])
    finally:
        layer.forward = whole
    assert session.n_tokens == len(text)
    after = session.extend([6, 7]).log_probs()
    assert after == pytest.approx(tiny.session().extend([*text, 6, 7], 2).log_probs(), abs=1e-4)


@pytest.mark.parametrize(("part", "told"), [("generate", "1 texts of 3 tokens"), ("from_pretrained", "weights of")])
def test_a_want_of_memory_is_told(
    tiny: TransformersModel, monkeypatch: pytest.MonkeyPatch, part: str, told: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nat some place")

    fresh, request = TransformersModel(tiny.model), Request.of("abc", max_tokens=2)
    owner = type(tiny._parts()[1])
    monkeypatch.setattr(owner, part, fail)
    with pytest.raises(ModelError, match=rf"memory does not suffice for .*{told}.* \(.*allocate memory\): ") as error:
        fresh.generate([request])
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert len(fresh.generate([request])[0].text) == 2


def test_a_model_that_gives_nan_is_named(tiny: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = TransformersModel(tiny.model)
    network = fresh._parts()[1]
    nothing = network.lm_head.forward
    monkeypatch.setattr(network.lm_head, "forward", lambda x: nothing(x) * float("nan"))
    fused = fuse(fusion=Contrastive(), expert=tiny, amateur=fresh)
    for decoder in (Decoder(fresh), speculate(tiny, fresh), fused):
        with pytest.raises(ModelError, match=rf"{tiny.model} gave NaN.*float32\.$"):
            decoder.generate([Request.of("abc", temperature=0, max_tokens=9)])


@pytest.mark.parametrize("how", ["left", "failed", "ended"])
def test_no_session_outlives_its_reply(tiny: TransformersModel, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    sessions: list[weakref.ref[Any]] = []
    whole = TorchSession.__init__

    def noted(self: TorchSession, *given: Any) -> None:
        sessions.append(weakref.ref(self))
        whole(self, *given)

    monkeypatch.setattr(TorchSession, "__init__", noted)
    n_threads = threading.active_count()
    gc.disable()  # what is let go of only by a collection of garbage would keep its cache until then
    try:
        stream = speculate(tiny, EarlyExit(1)).stream(Request.of("abc", temperature=0, max_tokens=30))
        next(stream)
        if how == "ended":
            list(stream)
        elif how == "failed":
            with pytest.raises(KeyboardInterrupt):
                stream.throw(KeyboardInterrupt)
        stream.close()
        assert len(sessions) >= 2
        assert [ref for ref in sessions if ref() is not None] == []
        assert threading.active_count() == n_threads
    finally:
        gc.enable()


def test_a_device_that_is_not_there_is_told(tiny: TransformersModel) -> None:
    with pytest.raises(InputError, match="device is 'abacus'"):
        TransformersModel(tiny.model, device="abacus").generate([Request.of("a")])


def test_what_cannot_be_is_told(tiny: TransformersModel) -> None:
    for session in (tiny.session(), random_model(0).session()):
        with pytest.raises(InputError, match="no tokens"):
            session.extend([])
        session.extend([1, 2])
        for n in (-1, 3):
            with pytest.raises(InputError, match=f"rewind is {n}"):
                session.rewind(n)
    with pytest.raises(ContextLengthError, match="window has 128"):
        tiny.session().extend([1] * 129)


def test_the_first_layers_leave_the_model(tiny: TransformersModel) -> None:
    before = tiny.session().extend([1, 2, 3]).log_probs()
    one = tiny.first_layers(1)
    assert not np.allclose(one.session().extend([1, 2, 3]).log_probs(), before)
    assert tiny.first_layers(3).session().extend([1, 2, 3]).log_probs() == pytest.approx(before, abs=1e-5)
    assert tiny.session().extend([1, 2, 3]).log_probs() == pytest.approx(before, abs=1e-6)
    assert len(tiny._parts()[1].model.layers) == 3


def test_the_bytes_of_a_real_vocabulary(tiny: TransformersModel) -> None:
    tokens = tiny.tokenizer.tokens
    assert tokens[0] == b"a"
    assert tokens[27] == b" "
    assert tokens[28] == b""
    ids = tiny.tokenizer.encode("the cat.")
    assert b"".join(tokens[i] for i in ids) == b"the cat."
    assert tiny.tokenizer.decode(ids) == "the cat."
