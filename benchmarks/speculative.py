"""Speculation on Spec-Bench: exactness, and speed beside plain decoding, transformers' own speculation and llama.cpp.

The floor of a plain token is the time to read all weights once; a pass over k + 1 tokens reads them once as well, so
that a drafted token is free until arithmetic takes longer than reading. Both are printed before anything else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.figures import Run, bootstrap
from pilotfish.decoding.acceptance import Draft, Lossless, Sampling
from pilotfish.decoding.decoder import Decoder
from pilotfish.decoding.drafting import Drafter, EarlyExit, Lookup, Retrieval, SmallModel
from pilotfish.models import catalog
from pilotfish.models.sessions import ArrayLogits
from pilotfish.models.transformers import TransformersModel
from pilotfish.training.tuning import distil_draft
from pilotfish.types import Request

TARGET = "smollm2-135m-instruct"
N_TOKENS = 64
COPYING = ("summarization", "rag")
_CHAT = "mt_bench"


def prompts(run: Run) -> dict[str, list[str]]:
    """First turns of the 480 prompts by task group; the eight small categories are one group."""
    groups: dict[str, list[str]] = {}
    for row in run.rows("spec_bench/questions.jsonl.gz"):
        known = ("translation", "summarization", "qa", "math_reasoning", "rag")
        groups.setdefault(row["category"] if row["category"] in known else _CHAT, []).append(row["turns"][0])
    return groups


def in_turn(groups: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """One prompt of each group after the other, so that a run cut by the clock is balanced."""
    for i in range(max(map(len, groups.values()))):
        for group, texts in groups.items():
            if i < len(texts):
                yield group, texts[i]


def main(run: Run) -> None:
    model = TransformersModel(TARGET)
    groups = prompts(run)
    if run.wants("floor"):
        floor(model)
    if run.wants("exact"):
        exact(run, model, groups)
    if run.wants("speed"):
        speed(run, model, groups)
    if run.wants("sampling"):
        sampling(run, model)
    if run.wants("structured"):
        structured(run, model)


def floor(model: TransformersModel) -> None:
    """What a token costs at least, and what a pass of more tokens costs beside it."""
    _, network = model._parts()
    n_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
    block = np.ones(64 << 20, dtype=np.float32)
    start = time.perf_counter()
    for _ in range(3):
        block.sum()
    rate = 3 * block.nbytes / (time.perf_counter() - start)
    least = n_bytes / rate * 1e3
    print(f"weights {n_bytes / 1e6:.0f} MB a token, memory reads {rate / 1e9:.1f} GB/s: floor {least:.0f} ms")
    session = model.session()
    session.extend(list(range(100, 228)), 1).best()
    plain = 0.0
    for n in (1, 2, 3, 5, 9, 17):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            session.extend(list(range(300, 300 + n))).best()
            times.append(time.perf_counter() - start)
            session.rewind(n)
        plain = plain or float(np.median(times))
        print(f"pass of {n:2d} tokens: {np.median(times) * 1e3:6.1f} ms, {np.median(times) / plain:.2f} plain passes")


def ask(text: str, n_tokens: int = N_TOKENS) -> Request:
    return Request.of(text, temperature=0, max_tokens=n_tokens)


def exact(run: Run, model: TransformersModel, groups: dict[str, list[str]]) -> None:
    """Greedy texts of a drafting decoder against the plain target's; asked for by name, all prompts are taken."""
    seconds = 25 if run.quick else 10**9 if run.only else 150
    plain, fast = Decoder(model), Decoder(model, [Lookup(), EarlyExit(6, least=0.0)], k=4)
    end = time.perf_counter() + seconds
    same, n_tokens = [], 0
    for group, text in in_turn(groups):
        if time.perf_counter() > end:
            break
        (a,), (b,) = plain.generate([ask(text)]), fast.generate([ask(text)])
        same.append(a.text == b.text)
        n_tokens += a.usage.completion_tokens
        if not same[-1]:
            print(f"{group}: {a.text!r} became {b.text!r}")
    run.figure(
        "greedy_identical", float(np.mean(same)), unit="share", better="higher", n=len(same), n_tokens=n_tokens,
        floor=1.0, note="always four drafted tokens a pass, fp32",
    )  # fmt: skip


def speed(run: Run, model: TransformersModel, groups: dict[str, list[str]]) -> None:
    """Tokens a second of every way on the same prompts in turn."""
    replies = [row["output"] for row in run.rows("alpaca_sample/alpaca.jsonl.gz")]
    n_tokens = 32 if run.quick else N_TOKENS
    drafters: list[Drafter] = [Lookup(), Retrieval(replies)]
    small = model.first_layers(6)
    if not run.quick:
        start = time.perf_counter()
        small = distil_draft(model, replies[:400], n_layers=3, n_steps=60)
        print(f"a draft of 3 layers distilled in {time.perf_counter() - start:.0f} s")
        drafters.append(SmallModel(small))
    ours = {"plain": Decoder(model), "lookup": Decoder(model, [Lookup()]), "combination": Decoder(model, drafters)}
    ways: dict[str, Callable[[Request], tuple[str, int]]] = {
        name: lambda request, decoder=decoder: _written(decoder, request)
        for name, decoder in ours.items()  # type: ignore[misc]
    }
    ways["transformers generate"] = lambda request: _generated(model, request)
    ways["transformers lookup"] = lambda request: _generated(model, request, prompt_lookup_num_tokens=10)
    ways["transformers assisted"] = lambda request: _generated(model, request, assistant_model=small._parts()[1])
    servers = llama_cpp()
    ways |= {name: lambda request, server=server: _served(server, request) for name, server in servers.items()}  # type: ignore[misc]
    times: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in ways}
    for way in ways.values():  # every way once unmeasured: memory is touched, controllers know their costs
        way(ask("Repeat after me: one two three, one two three.", 16))
    end = time.perf_counter() + (70 if run.quick else 400)
    n = 0
    for group, text in in_turn(groups):
        if time.perf_counter() > end and n >= len(groups):
            break
        n += 1
        order = np.random.default_rng(n).permutation(len(ways))
        for i in order:
            name = list(ways)[i]
            start = time.perf_counter()
            _, n_written = ways[name](ask(text, n_tokens))
            times[name].setdefault(group, []).append((n_written, time.perf_counter() - start))
    _speed_figures(run, times, n)


def _speed_figures(run: Run, times: dict[str, dict[str, list[tuple[int, float]]]], n: int) -> None:
    def rate(name: str, wanted: tuple[str, ...] | None = None) -> float:
        rows = [row for group, found in times[name].items() if wanted is None or group in wanted for row in found]
        return sum(tokens for tokens, _ in rows) / sum(seconds for _, seconds in rows)

    for name in times:
        by_group = "  ".join(f"{group} {rate(name, (group,)):.1f}" for group in times[name])
        print(f"{name:24s} {rate(name):6.1f} tokens/s   {by_group}")
    groups = list(times["plain"])
    ratios = {group: rate("combination", (group,)) / rate("plain", (group,)) for group in groups}
    worst = min(ratios, key=lambda group: ratios[group])
    run.figure("worst_group_speedup", ratios[worst], unit="ratio", better="higher", n=n, floor=0.98, group=worst)
    each = np.array(
        [
            (c[0] / c[1]) / (p[0] / p[1])
            for group in groups
            for c, p in zip(times["combination"][group], times["plain"][group], strict=True)
        ]
    )
    low, high = bootstrap(each)
    whole = rate("combination") / rate("plain")
    run.figure("overall_speedup", whole, unit="ratio", better="higher", n=n, low=low, high=high, floor=1.5)
    copied = rate("lookup", COPYING) / rate("plain", COPYING)
    n_copied = sum(len(times["plain"][group]) for group in COPYING)
    run.figure("lookup_summarisation_speedup", copied, unit="ratio", better="higher", n=n_copied, floor=1.8)
    peers = {name: rate(name) for name in times if name.startswith("transformers")}
    best = max(peers, key=lambda name: peers[name])
    run.figure(
        "vs_transformers_best", rate("combination") / peers[best], unit="ratio", better="higher", n=n, floor=1.2,
        peer=best, peer_value=peers[best], peer_source="measured",
    )  # fmt: skip
    run.figure(
        "plain_vs_generate", rate("plain") / rate("transformers generate"), unit="ratio", better="higher", n=n,
        floor=1.0, peer="transformers generate", peer_value=rate("transformers generate"), peer_source="measured",
    )  # fmt: skip
    if "llama.cpp lookup" in times:
        run.figure(
            "vs_llama_cpp", rate("combination") / rate("llama.cpp lookup"), unit="ratio", better="higher", n=n,
            peer="llama.cpp n-gram speculation, 4-bit weights against fp32", peer_value=rate("llama.cpp lookup"),
            peer_source="measured", its_own_speedup=rate("llama.cpp lookup") / rate("llama.cpp plain"),
        )  # fmt: skip


def _written(decoder: Decoder, request: Request) -> tuple[str, int]:
    (reply,) = decoder.generate([request])
    return reply.text, max(1, reply.usage.completion_tokens)


def _generated(model: TransformersModel, request: Request, **how: Any) -> tuple[str, int]:
    import torch

    tokenizer, network = model._parts()
    ids = torch.tensor([model.tokenizer.encode_request(request)])
    with torch.inference_mode():
        made = network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_tokens, do_sample=False,
            temperature=None, top_p=None, pad_token_id=tokenizer.eos_token_id, **how,
        )  # fmt: skip
    tokens = made[0, ids.shape[1] :]
    return str(tokenizer.decode(tokens, skip_special_tokens=True)), len(tokens)


def llama_cpp() -> dict[str, Any]:
    """llama.cpp on the same model's 4-bit file, plain and with its own n-gram speculation."""
    try:
        import xllamacpp
    except ImportError:
        print("no xllamacpp: llama.cpp is left out")
        return {}
    servers = {}
    for name, kind in (("llama.cpp plain", "NONE"), ("llama.cpp lookup", "NGRAM_SIMPLE")):
        params = xllamacpp.CommonParams()
        params.model.path = str(catalog.path(TARGET))
        params.n_ctx, params.n_parallel, params.verbosity = 4096, 1, -1
        params.speculative.types = [getattr(xllamacpp.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{kind}")]
        servers[name] = xllamacpp.Server(params)
    return servers


def _served(server: Any, request: Request) -> tuple[str, int]:
    body = {key: value for key, value in request.to_json().items() if key != "model"}
    data = server.handle_chat_completions(json.loads(json.dumps({**body, "cache_prompt": False})))
    return data["choices"][0]["message"]["content"], max(1, data["usage"]["completion_tokens"])


def sampling(run: Run, model: TransformersModel) -> None:
    """Chi-square of what speculative sampling writes: on a small vocabulary, and on the real model's first token."""
    rng = np.random.default_rng(0)
    n_draws = 20_000 if run.quick else 100_000
    target, drafter = (np.log(rng.dirichlet(np.full(12, 0.5), size=13)).astype(np.float32) for _ in range(2))
    how = Sampling(0.8, 0.95)
    p_first, q = how.probabilities(target[:1])[0], how.probabilities(drafter[:1])
    p_second = how.probabilities(target[1:])
    counts = np.zeros((12, 12))
    acceptance = Lossless(how)
    for _ in range(n_draws):
        token = int(rng.choice(12, p=q[0]))
        n, following = acceptance.accept(ArrayLogits(target[[0, token + 1]]), Draft([token], q), rng)
        first, second = (token, following) if n else (following, int(rng.choice(12, p=p_second[following])))
        counts[first, second] += 1
    expected = (p_first[:, None] * p_second).ravel() * n_draws
    p_small = _p_value(counts.ravel(), expected)
    session, early = model.session(), model.first_layers(20).session()
    prompt = model.tokenizer.encode_request(ask("Name a colour."))
    real = ArrayLogits(np.repeat(session.extend(prompt, 1).log_probs(), 2, axis=0))
    drafted = how.probabilities(early.extend(prompt, 1).log_probs())
    n_real = 1_000 if run.quick else 10_000
    seen = np.zeros(real.values.shape[1])
    kept = np.flatnonzero(drafted[0])
    for _ in range(n_real):
        token = int(rng.choice(kept, p=drafted[0, kept]))
        n, following = acceptance.accept(real, Draft([token], drafted), rng)
        seen[token if n else following] += 1
    p_real = _p_value(seen, how.probabilities(real.values[:1])[0] * n_real)
    run.figure(
        "sampling_p_value", min(p_small, p_real), unit="p", better="higher", n=n_draws, floor=0.001,
        small_vocabulary=round(p_small, 4), first_token_of_the_model=round(p_real, 4), n_real=n_real,
    )  # fmt: skip


def structured(run: Run, model: TransformersModel) -> None:
    """Calls at temperature 1 that must follow a schema, with drafts; asked for by name, a thousand of them."""
    schema = {
        "type": "object",
        "properties": {"intent": {"enum": ["card", "money", "other"]}, "urgent": {"type": "boolean"}},
        "required": ["intent", "urgent"],
        "additionalProperties": False,
    }
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    decoder = Decoder(model, [Lookup()])
    questions = [row["text"] for row in run.rows("banking77/test.jsonl.gz")]
    end = time.perf_counter() + (10 if run.quick else 10**9 if run.only else 60)
    n, n_failed = 0, 0
    while n < 1_000 and (n == 0 or time.perf_counter() < end):
        asked = Request.of(f"{questions[n]} JSON:", temperature=1.0, seed=n, max_tokens=48, extra=form)
        try:
            found = json.loads(decoder.generate([asked])[0].text)
            n_failed += set(found) != {"intent", "urgent"}
        except json.JSONDecodeError:
            n_failed += 1
        n += 1
    run.figure("structured_failures", n_failed, unit="calls", better="lower", n=n, floor=0)


def _p_value(counts: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square; what is expected fewer than five times counts as one."""
    often = expected >= 5
    seen = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    if wanted[-1] < 1:
        assert seen[-1] <= 10, "something was written that has next to no probability"
        seen, wanted = seen[:-1], wanted[:-1] * seen[:-1].sum() / wanted[:-1].sum()
    return float(stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue) if seen.size > 1 else 1.0
