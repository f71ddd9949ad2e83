from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.decoding.acceptance import Draft, Repeatable, Typical
from pilotfish.decoding.branches import Branches, merged
from pilotfish.decoding.copying import Lookup, Retrieval
from pilotfish.decoding.decoder import Decoder, fuse, speculate
from pilotfish.decoding.drafting import (
    Context,
    EarlyExit,
    OtherVocabulary,
    Proposer,
    SmallModel,
    TokenIntersection,
)
from pilotfish.decoding.fused import Fused
from pilotfish.decoding.fusion import ContextAware, Contrastive
from pilotfish.decoding.loop import Stats
from pilotfish.decoding.search import ChunkSearch
from pilotfish.decoding.suffixes import SuffixIndex
from pilotfish.decoding.text import TextStream
from pilotfish.errors import ContextLengthError, InputError, ModelError
from pilotfish.methods.build_decoder import without_context
from pilotfish.models.ngram import NGramModel
from pilotfish.models.sessions import ArrayLogits, FunctionSession
from pilotfish.types import Message, Reply, Request
from tests.decoding.small import Letters, Scripted, random_model, saying


class Noise:
    """Drafts anything."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def begin(self, context: Context) -> Proposer:
        return self

    def draft(self, prefix: Sequence[int], k: int) -> Draft:
        rng = np.random.default_rng([self.seed, len(prefix)])
        return Draft(rng.integers(0, 9, size=int(rng.integers(0, k + 1))).tolist())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(0, 12), st.integers(1, 40))
def test_speculation_writes_what_the_target_writes(seed: int, k: int, n: int) -> None:
    target = random_model(seed, sharp=1.0)
    request = Request.of("abc", temperature=0, max_tokens=n)
    alone = Decoder(target).generate([request])[0]
    for drafters in (
        [Noise(seed)],
        [Lookup(2), SmallModel(random_model(seed + 1))],
        [Lookup(), SmallModel(target)],
        [Branches([Noise(seed), SmallModel(target, least=0.0), Noise(seed + 1)])],
    ):
        for decoder in (Decoder(target, drafters, k=k), speculate(target, drafters)):
            assert decoder.generate([request])[0].replace(usage=alone.usage) == alone
            assert decoder.generate([request])[0].usage.completion_tokens == n


def test_a_perfect_drafter_needs_few_passes() -> None:
    target = random_model(3)
    reply, stats = Decoder(target, [SmallModel(target, least=0.0)], k=5).answer(
        Request.of("ab", temperature=0, max_tokens=60)
    )
    assert (stats.n_passes, stats.n_accepted, stats.n_tokens) == (10, 50, 60)
    assert len(reply.text) == 60


def test_a_tree_saves_passes_where_its_second_branch_is_right() -> None:
    target = random_model(3)
    request = Request.of("ab", temperature=0, max_tokens=60)
    right = SmallModel(target, least=0.0)
    reply, stats = Decoder(target, [Branches([Noise(0), right])], k=8).answer(request)
    assert reply.text == Decoder(target).generate([request])[0].text
    # The second branch has at least 2 of 8 tokens: its two, or more where the noise is short.
    assert stats.n_passes <= 20
    with pytest.raises(InputError, match="Branches has no drafters"):
        Branches([])


def test_a_session_without_trees_takes_the_first_branch() -> None:
    target = random_model(3)
    request = Request.of("ab", temperature=0, max_tokens=30)
    tree = Branches([SmallModel(target, least=0.0), Noise(0)])
    fused = Fused(Contrastive(0.1, 0.5), {"expert": target, "amateur": random_model(1)})
    assert Decoder(fused, [tree], k=6).generate([request])[0].text == Decoder(fused).generate([request])[0].text


def test_sampling_with_a_drafter_of_the_same_model_accepts_all() -> None:
    target = random_model(3)
    request = Request.of("ab", temperature=0.8, top_p=0.9, max_tokens=50, seed=1)
    _, stats = Decoder(target, [SmallModel(target, least=0.0)], k=4).answer(request)
    assert stats.n_accepted == stats.n_drafted > 0
    typical = Decoder(target, [SmallModel(target, least=0.0)], k=4, typical=Typical(epsilon=1e-9))
    assert typical.answer(request)[1].n_accepted > 0


def test_branches_are_merged_where_they_agree_and_were_not_drawn() -> None:
    even = np.full((2, 9), 1 / 9)
    tree = merged([Draft([1, 2, 3, 4]), Draft([1, 5, 6]), Draft([7, 8], even)], 6)
    assert (list(tree.tokens), list(tree.parents or [])) == ([1, 2, 7, 3, 4, 5], [-1, 0, -1, 1, 3, 0])
    assert tree.depths() == [1, 2, 1, 3, 4, 2]
    assert tree.probabilities is not None
    assert tree.probabilities[2] == pytest.approx(even[0])
    assert tree.probabilities[0] == pytest.approx(np.eye(9)[1])
    assert list(tree.chain().tokens) == [1, 2, 3, 4]
    assert merged([Draft([1, 2], even), Draft([1])], 3).parents == [-1, 0, -1]
    assert merged([Draft([1, 2]), Draft([1])], 3).parents is None
    assert merged([], 3) == Draft()


def test_lookup_and_retrieval_copy_what_followed() -> None:
    request = Request.of("a", temperature=0)
    target = random_model(0)
    context = Context(target, request, 1, None, None)  # type: ignore[arg-type]
    assert Lookup().begin(context).draft([1, 2, 3, 4, 9, 2, 3], 2).tokens == [4, 9]
    assert Lookup().begin(context).draft([1, 2, 3], 4).tokens == ()
    again = Lookup().begin(context)
    # After 3 came 5 last and 4 before: worth 1/3, 1/3 2/4 and so on along the first, 1/3 of 1/3 for the other.
    text = [3, 4, 9, 3, 5, 8, 3]
    tree = again.draft(text, 3)
    assert (list(tree.tokens), list(tree.parents or []), tree.strength) == ([5, 8, 4], [-1, 0, -1], 1)
    assert list(tree.chain().tokens) == [5, 8]
    assert list(again.draft([*text, 5], 2).tokens) == [8, 3]
    assert list(Lookup(n_branches=1).begin(context).draft(text, 3).tokens) == [5, 8, 3]
    found = Retrieval(["abcd", "abce", "abce"]).begin(context).draft([7, 0, 1, 2], 3)
    assert list(found.tokens) == [4, 8]
    assert found.strength == 3
    assert SuffixIndex([], 4).find([1], 2) == (0, [])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_the_suffix_index_finds_the_longest_run(texts: list[list[int]], prefix: list[int]) -> None:
    def seen(run: list[int]) -> bool:
        return any(text[i : i + len(run)] == run for text in texts for i in range(len(text) - len(run) + 1))

    longest = max((n for n in range(1, min(4, len(prefix)) + 1) if seen(prefix[-n:])), default=0)
    n, tokens = SuffixIndex(texts, 4).find(prefix, 3)
    assert n in (longest, 0)
    if tokens:
        assert n == longest
        assert seen(prefix[-n:] + tokens)


def test_drafters_of_other_vocabularies_are_lossless_and_accepted() -> None:
    target = saying([0, 1, 2, 3, 0, 1, 2, 3, 8], 9)
    pairs = Letters([b"ab", b"cd", b"a", b"b", b"c", b"d", b"zz", b""])

    def small(read: Sequence[int]) -> np.ndarray:
        written = pairs.decode(read[1:])
        wanted = "abcdabcd"[len(written) :]
        row = np.full(8, -20.0, dtype=np.float32)
        row[pairs.encode(wanted[:2])[0] if wanted else 7] = 0.0
        return row

    other = Scripted(small, pairs)
    request = Request.of("a", temperature=0, max_tokens=20)
    alone = Decoder(target).generate([request])[0]
    assert alone.text == "abcdabcd"
    for drafter in (OtherVocabulary(other), TokenIntersection(other)):
        reply, stats = Decoder(target, [drafter], k=4).answer(request)
        assert (reply.text, reply.finish_reason) == ("abcdabcd", "stop")
        if isinstance(drafter, OtherVocabulary):
            assert stats.n_accepted >= 6
    with pytest.raises(InputError, match="share no token"):
        Decoder(target, [TokenIntersection(Scripted(small, Letters([b"x", b"y", b""])))]).generate([request])
    with pytest.raises(InputError, match="drafter Scripted has another vocabulary"):
        Decoder(target, [SmallModel(other)]).generate([request])


def test_stop_strings_and_characters_split_across_tokens() -> None:
    pieces = [
        b"a",
        b"b",
        "é".encode()[:1],
        "é".encode()[1:],
        b"STO",
        b"P",
        b"SUN",
        "🙂".encode()[:2],
        "🙂".encode()[2:],
        b"",
    ]
    tokenizer = Letters(pieces)
    tokens = [0, 2, 3, 4, 6, 7, 8, 1, 4, 5, 0, 9]
    whole = saying(tokens, len(pieces))
    whole.tokenizer = tokenizer
    request = Request.of("a", temperature=0, max_tokens=50)
    decoder = Decoder(whole, [Noise(1)])
    pieces_of = list(decoder.stream(request))
    assert "".join(pieces_of) == "aéSTOSUN🙂bSTOPa"
    assert not any("\ufffd" in piece for piece in pieces_of)
    assert "".join(decoder.stream(request.replace(stop=("STOP",)))) == "aéSTOSUN🙂b"
    (reply,) = decoder.generate([request.replace(stop=("STOP", "nothing"))])
    assert (reply.text, reply.finish_reason) == ("aéSTOSUN🙂b", "stop")
    assert decoder.generate([request.replace(max_tokens=2)])[0].text == "a\ufffd"
    assert decoder.generate([request.replace(max_tokens=4, stop=("STOP",))])[0].text == "aéSTO"


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="aé🙂日 ", max_size=60), st.integers(1, 4))
def test_streamed_text_is_the_text(text: str, width: int) -> None:
    tokenizer = Letters([bytes([i]) for i in range(256)])
    raw = text.encode()
    stream = TextStream(tokenizer)
    made = "".join(stream.write(byte) for byte in raw)
    assert made + stream.close() == text
    assert stream.n_tokens == len(raw)


def test_leaving_a_stream_stops_the_model() -> None:
    target = random_model(5)
    n_calls = 0
    inner = target.function

    def counted(tokens: Sequence[int]) -> np.ndarray:
        nonlocal n_calls
        n_calls += 1
        return inner(tokens)

    target.function = counted
    stream = Decoder(target).stream(Request.of("abc", temperature=0, max_tokens=500))
    for _ in range(3):
        next(stream)
    stream.close()
    assert n_calls < 20


def test_a_stream_ends_with_the_reply_and_counts() -> None:
    decoder = Decoder(random_model(5), [Lookup()])
    request = Request.of("abc", temperature=0, max_tokens=20)
    stats = Stats()
    ended: list[Reply] = []

    def whole() -> Iterator[str]:
        ended.append((yield from decoder.stream(request, stats)))

    pieces = list(whole())
    (reply,), (alone,) = ended, decoder.generate([request])
    assert reply.replace(usage=alone.usage) == alone
    assert "".join(pieces) == alone.text
    assert (reply.usage.completion_tokens, stats.n_tokens, reply.finish_reason) == (20, 20, "length")


def test_loading_a_model_is_no_part_of_a_replys_time() -> None:
    target = random_model(0)
    begin = target.session
    target.session = lambda: time.sleep(0.3) or begin()  # type: ignore[method-assign,func-returns-value]
    assert Decoder(target).generate([Request.of("a", temperature=0, max_tokens=1)])[0].usage.latency < 0.3


@pytest.mark.parametrize(("seconds", "drafts"), [(0.01, True), (5.0, False)])
def test_a_drafter_slower_than_the_target_is_left_alone(
    seconds: float, drafts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("pilotfish.decoding.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow:
        """Right every time, and taking its time."""

        def __init__(self) -> None:
            self.exact = SmallModel(random_model(3), least=0.0)

        def begin(self, context: Context) -> Proposer:
            proposer = self.exact.begin(context)

            def draft(prefix: Sequence[int], k: int) -> Draft:
                now[0] += seconds * k
                return proposer.draft(prefix, k)

            return SimpleNamespace(draft=draft)

    class Timed(FunctionSession):
        def extend(self, tokens: Sequence[int], n_last: int | None = None) -> ArrayLogits:
            now[0] += 0.9 + 0.1 * len(tokens)
            return super().extend(tokens, n_last)

    target = random_model(3)
    alone = Decoder(target).generate([Request.of("ab", temperature=0, max_tokens=400)])[0].text
    target.session = lambda: Timed(target.function)  # type: ignore[method-assign]
    reply, stats = speculate(target, Slow()).answer(Request.of("ab", temperature=0, max_tokens=400))
    assert reply.text == alone
    assert (stats.n_passes < 150) == drafts
    assert (stats.draft_seconds < 0.1 * stats.seconds) or drafts


def test_bad_input_is_told() -> None:
    short = random_model(0)
    short.window = 4
    with pytest.raises(ContextLengthError, match="window has 4"):
        Decoder(short).generate([Request.of("abcd", temperature=0)])
    assert len(Decoder(short, [Noise(0)]).generate([Request.of("abc", temperature=0)])[0].text) == 1
    broken = Scripted(lambda _: np.full(9, np.nan, dtype=np.float32))
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="NaN"):
            Decoder(broken).generate([Request.of("a", temperature=temperature)])
    with pytest.raises(InputError, match="prompt is empty"):
        Decoder(short).generate([Request.of("", temperature=0)])
    with pytest.raises(InputError, match="early layer"):
        Decoder(short, [EarlyExit(2)]).generate([Request.of("a", temperature=0)])
    with pytest.raises(InputError, match="drafter has a int"):
        speculate(short, [3])
    with pytest.raises(InputError, match="target is a str"):
        speculate("smollm2-135m-instruct")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs expert, amateur"):
        fuse(fusion=Contrastive(), expert=short)
    with pytest.raises(InputError, match="'amateur' has a str"):
        fuse(fusion=Contrastive(), expert=short, amateur="small")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fusion is 'contrastive'"):
        fuse(fusion="contrastive", expert=short, amateur=short)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="views has the role 'judge'"):
        fuse(fusion=Contrastive(), expert=short, amateur=short, views={"judge": lambda request: request})


@pytest.mark.parametrize(
    ("wrong", "told"), [({"max_tokens": -1}, "'max_tokens' is -1"), ({"stop": "end"}, "'stop' is 'end'")]
)
def test_a_field_of_a_request_that_cannot_be_is_named(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Request.of("a", **wrong)


def test_a_choice_that_the_vocabulary_cannot_write_is_told_in_one_line() -> None:
    pytest.importorskip("llguidance")
    decoder = Decoder(random_model(0))
    assert decoder.generate([Request.of("a", extra={"choices": ["abba"]})])[0].text == "abba"
    with pytest.raises(ModelError, match="Field 'choices' could not be followed") as told:
        decoder.generate([Request.of("a", extra={"choices": ["zebra"]})])
    assert "\n" not in str(told.value)


def test_negative_seeds_are_seeds() -> None:
    decoder = Decoder(random_model(0))
    one, again, other = (decoder.generate([Request.of("a", max_tokens=20, seed=seed)])[0].text for seed in (-1, -1, -2))
    assert one == again != other


def test_a_fused_model_can_be_speculated() -> None:
    large, small = random_model(1), random_model(2)
    fused = fuse(expert=large, amateur=small, fusion=Contrastive(0.1, 0.7))
    request = Request.of("abc", temperature=0, max_tokens=40)
    alone = fused.generate([request])[0].text
    assert alone != Decoder(large).generate([request])[0].text
    fast = speculate(fused, [SmallModel(large, least=0.0), Lookup()])
    assert fast.generate([request])[0].text == alone
    assert Decoder(fused.target, [Noise(4)], k=3).generate([request])[0].text == alone


def test_a_contrast_of_what_can_be_copied_can_be_speculated() -> None:
    large, small = random_model(1), random_model(2)
    request = Request.of("abc", "dab", temperature=0, max_tokens=40)
    made = {
        copied: fuse(
            fusion=ContextAware(1.0, adaptive=False, copied=copied),
            views={"without_context": without_context},
            with_context=large,
            without_context=small,
        )
        for copied in (False, True)
    }
    alone = made[True].generate([request])[0].text
    assert alone not in (Decoder(large).generate([request])[0].text, made[False].generate([request])[0].text)
    for drafters in ([SmallModel(large, least=0.0), Lookup()], [Noise(4)]):
        assert Decoder(made[True].target, drafters, k=3).generate([request])[0].text == alone
    # What one reply's context brings is not brought by another's.
    untold = request.replace(messages=Request.of("abc").messages)
    assert made[True].generate([untold, request])[1].text == alone


def test_an_ngram_model_is_a_drafter() -> None:
    texts = ["the card has arrived and the card is here. "] * 4
    target, small = NGramModel(6, "char").fit(texts), NGramModel(3, "char").fit(texts)
    reply, stats = Decoder(target, [small and SmallModel(small)], k=4).answer(
        Request.of("the card", temperature=0, max_tokens=20)
    )
    assert reply.text == Decoder(target).generate([Request.of("the card", temperature=0, max_tokens=20)])[0].text
    assert stats.tokens_per_pass > 2


@pytest.mark.parametrize("width", [7, 12])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_drafter_whose_last_layer_is_padded_otherwise_drafts_in_the_targets_width(width, temperature):
    target = random_model(0)

    def padded(tokens):
        row = target.function(tokens)
        return row[:width] if width < 9 else np.append(row, np.full(width - 9, -40.0, dtype=np.float32))

    request = Request.of("a", temperature=temperature, max_tokens=12, seed=3)
    reply, stats = Decoder(target, [SmallModel(Scripted(padded), least=0.0)], k=3).answer(request)
    assert len(reply.text) == 12
    assert stats.n_accepted > 0
    if temperature == 0:
        assert reply.text == Decoder(target).generate([request])[0].text


def test_a_seed_writes_the_same_whatever_is_drafted() -> None:
    asked = [Request.of("ab", temperature=1.0, max_tokens=40, seed=seed) for seed in range(5)]
    alone = [reply.text for reply in Decoder(random_model(0)).generate(asked)]
    for drafters in ([Lookup()], [SmallModel(random_model(0))], [SmallModel(random_model(3)), Noise(1)]):
        for k in (1, 3, None):
            drafted = Decoder(random_model(0), drafters, k=k)
            assert [reply.text for reply in drafted.generate(asked)] == alone
    assert len(set(alone)) > 1


def test_a_repeatable_draw_keeps_the_distribution_and_accepts_what_it_would_draw() -> None:
    p = np.array([0.6, 0.3, 0.1], dtype=np.float32)
    logits = ArrayLogits(np.log(np.array([p, p])))
    rng = np.random.default_rng(0)
    drawn = [Repeatable().accept(logits, Draft([0]), rng) for _ in range(4000)]
    first = [0 if path else token for path, token in drawn]
    assert np.allclose(np.bincount(first) / 4000, p, atol=0.03)
    assert np.mean([len(path) for path, _ in drawn]) == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"frequency_penalty": 0.5}, "'frequency_penalty' is 0.5"),
        ({"presence_penalty": -1}, "'presence_penalty' is -1"),
        ({"logit_bias": {"1": 5}}, "'logit_bias' is "),
        ({"tools": [{"type": "function"}]}, "'tools' is "),
    ],
)
def test_what_would_go_unheeded_is_refused(extra: dict[str, object], told: str) -> None:
    for model in (Decoder(random_model(0)), ChunkSearch(random_model(0), random_model(1), random_model(2))):
        with pytest.raises(InputError, match=told):
            model.generate([Request.of("a", max_tokens=2, extra=extra)])
    with pytest.raises(InputError, match="'logprobs' is set"):
        ChunkSearch(random_model(0), random_model(1), random_model(2)).generate([Request.of("a", log_probs=0)])
    neutral = {"frequency_penalty": 0, "logit_bias": {}, "tools": [{"type": "function"}], "tool_choice": "none"}
    assert Decoder(random_model(0)).generate([Request.of("a", max_tokens=2, extra=neutral)])[0].text


def test_an_image_is_refused_and_not_left_out() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    asked = Request((Message("user", ({"type": "text", "text": "a"}, image)),), max_tokens=2)
    with pytest.raises(InputError, match="part of type 'image_url'"):
        Decoder(random_model(0)).generate([asked])
