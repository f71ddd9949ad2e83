"""Speculation on Spec-Bench: exactness, and speed beside plain decoding, transformers' own speculation and llama.cpp.

The floor of a plain token is the time to read all weights once; a pass over k + 1 tokens reads them once as well, so
that a drafted token is free until arithmetic takes longer than reading. Both are printed before anything else.

``exact``, ``speed`` and ``structured`` take long: what was measured is kept in the cache beside the models (no texts),
and the next full run of the part goes on where the last one stopped. Delete ``speculative.jsonl`` there to measure
again.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.figures import Run
from benchmarks.kept import Kept
from pilotfish.decoding.acceptance import Draft, Lossless, Sampling
from pilotfish.decoding.copying import Lookup, Retrieval
from pilotfish.decoding.decoder import Decoder
from pilotfish.decoding.loop import Stats
from pilotfish.models import catalog
from pilotfish.models.sessions import ArrayLogits
from pilotfish.models.transformers import TransformersModel, first_layers
from pilotfish.statistics import bootstrap_interval
from pilotfish.types import Request

TARGETS = {"smollm2": "smollm2-135m-instruct", "qwen": "qwen2.5-coder-0.5b-instruct"}
N_TOKENS = 64
N_TIMED = {"smollm2": 128, "qwen": 1024}
"""Spec-Bench has replies of up to 1,024; past a hundred SmolLM2 goes round in circles, which would flatter copying."""
N_EARLY = 128
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
    model = TransformersModel(TARGETS["smollm2"])
    groups = prompts(run)
    if run.wants("floor"):
        floor(model)
    if run.wants("exact"):
        exact(run, model, groups)
    if run.wants("speed"):
        speed(run, "smollm2", model, groups)
    if run.wants_long("speed_qwen"):
        large = TransformersModel(TARGETS["qwen"])
        floor(large)
        speed(run, "qwen", large, groups)
    if run.wants("sampling"):
        sampling(run, model)
    if run.wants("structured"):
        structured(run, model)


def floor(model: TransformersModel) -> None:
    """What a token costs at least, and what a pass of more tokens costs beside it."""
    network = model._trainable()[1]
    looked_up = network.get_input_embeddings().weight
    # Of the embeddings a token reads one row, unless they are the last layer too.
    once = 0 if looked_up is network.get_output_embeddings().weight else looked_up.nbytes
    n_bytes = sum(p.nbytes for p in network.parameters()) - once
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
    """Greedy texts of a drafting decoder against the target's own, for as long as there is time.

    The target's own come from ``TransformersModel.generate``, eight prompts of a group at a time, which shares no code
    with the loop; where the two differ the plain loop decides, since a batch rounds otherwise than one text does.
    """
    kept = Kept(run, "speculative", "exact")
    known = {(row["group"], row["i"]) for row in kept.rows}
    replies = [row["output"] for row in run.rows("alpaca_sample/alpaca.jsonl.gz")]
    plain, fast = Decoder(model), Decoder(model, [Lookup(), Retrieval(replies)], k=4)
    end = time.perf_counter() + (25 if run.quick else 200 if run.only else 150)
    size = 2 if run.quick else 8
    for start in range(0, max(map(len, groups.values())), size):
        for group, texts in groups.items():
            left = [i for i in range(start, min(start + size, len(texts))) if (group, i) not in known]
            if not left or time.perf_counter() > end:
                continue
            own = model.generate([ask(texts[i]) for i in left])
            for i, reply in zip(left, own, strict=True):
                (drafted,) = fast.generate([ask(texts[i])])
                batched = drafted.text == reply.text
                alone = reply if batched else plain.generate([ask(texts[i])])[0]
                same = drafted.text == alone.text
                n_tokens = reply.usage.completion_tokens
                kept.add(group=group, i=i, same=same, as_batched=batched, n_tokens=n_tokens)
                if not same:
                    print(f"{group}: {alone.text!r} became {drafted.text!r}")
    same = [row["same"] for row in kept.rows]
    run.figure(
        "greedy_identical", float(np.mean(same)), unit="share", better="higher", n=len(same),
        n_tokens=sum(row["n_tokens"] for row in kept.rows), floor=1.0, note="always four drafted tokens a pass, fp32",
        as_batched=float(np.mean([row["as_batched"] for row in kept.rows])),
    )  # fmt: skip


def speed(run: Run, label: str, model: TransformersModel, groups: dict[str, list[str]]) -> None:
    """Tokens a second of every way on the same prompts in turn, reading of the prompt included.

    With one thread CPU seconds are what a quiet machine takes by the clock; on a shared one the clock tells of others.
    """
    import torch

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    kept = Kept(run, "speculative", f"timed {label}")
    n_tokens = 32 if run.quick else N_TIMED[label]
    replies = [row["output"] for row in run.rows("alpaca_sample/alpaca.jsonl.gz")]
    ours = {
        "plain": Decoder(model), "lookup": Decoder(model, [Lookup()]),
        "combination": Decoder(model, [Lookup(), Retrieval(replies)]),
    }  # fmt: skip
    ways: dict[str, Callable[[Request], dict[str, float]]] = {
        name: functools.partial(_written, clock, decoder) for name, decoder in ours.items()
    }
    peer = model._trainable()[1]  # as transformers loads it
    ways["transformers generate"] = lambda request: _generated(model, peer, request)
    ways["transformers lookup"] = lambda request: _generated(model, peer, request, prompt_lookup_num_tokens=10)
    if label == "smollm2" and run.quick:  # a third as fast as plain generation: it would only use up the time
        small = first_layers(peer, 6)
        ways["transformers assisted"] = lambda request: _generated(model, peer, request, assistant_model=small)
    servers = llama_cpp(TARGETS[label])
    ways |= {name: functools.partial(_served, server) for name, server in servers.items()}
    for way in ways.values():  # every way once unmeasured: memory is touched, controllers know their costs
        way(ask("Repeat after me: one two three, one two three, one two three, one two", 24))
    end = time.perf_counter() + (60 if run.quick else 400 if run.only else 185)
    done = {(row["i"], row["way"]) for row in kept.rows}
    # Few are enough of what is no rival by far, has other weights, or takes minutes.
    few = dict.fromkeys(["transformers assisted", *servers], 2)
    few |= dict.fromkeys(["transformers generate", "transformers lookup"], len(groups))
    for i, (group, text) in enumerate(in_turn(groups)):
        for at in np.random.default_rng(i).permutation(len(ways)):
            name = list(ways)[at]
            late = time.perf_counter() > end and (kept.path is not None or i >= len(groups))
            if late or (i, name) in done or i >= few.get(name, np.inf):
                continue
            start = clock()
            written = ways[name](ask(text, n_tokens))
            kept.add(i=i, group=group, way=name, seconds=clock() - start, clock=clock.__name__, **written)
    speed_figures(run, label, kept.rows)


def speed_figures(run: Run, label: str, rows: list[dict[str, Any]]) -> None:
    import torch

    by_way: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault(row["way"], {})[row["i"]] = row
    groups = list(dict.fromkeys(row["group"] for row in rows))
    ours = ("plain", "lookup", "combination")
    if any(len({row["group"] for row in by_way[name].values()}) < 6 for name in ours):
        print("Not every task group was timed yet: run the part again.")
        return

    def rate(name: str, wanted: Iterable[int], part: str = "whole") -> float:
        found = [by_way[name][i] for i in wanted]
        n, seconds = (sum(row[key] for row in found) for key in ("n_tokens", "seconds"))
        if part == "early":
            n, seconds = (sum(row[key] for row in found) for key in ("n_early", "early"))
        elif part == "written":
            n, seconds = n - len(found), seconds - sum(row["first"] for row in found)
        return float(n / seconds)

    def ratio(one: str, other: str, *among: str, part: str = "whole") -> tuple[float, int]:
        """Of two ways' speeds on the prompts both had, and how many those are: of the whole, or of a part."""
        both = [i for i in by_way[one].keys() & by_way[other].keys() if not among or by_way[one][i]["group"] in among]
        return rate(one, both, part) / rate(other, both, part), len(both)

    for name, found in by_way.items():
        of = {group: [i for i, row in found.items() if row["group"] == group] for group in groups}
        by_group = "  ".join(f"{group} {rate(name, own):.1f}" for group, own in of.items() if own)
        print(f"{name:24s} {rate(name, found):6.1f} tokens/s   {by_group}")

    def figure(name: str, found: tuple[float, int], **more: Any) -> None:
        end = "" if label == "smollm2" else f"_{label}"
        common = {"target": TARGETS[label], "n_threads": torch.get_num_threads(), "max_tokens": N_TIMED[label]}
        clocks = "/".join(sorted({row["clock"] for row in rows}))
        run.figure(name + end, found[0], unit="ratio", better="higher", n=found[1], clock=clocks, **common, **more)

    each = {group: ratio("combination", "plain", group) for group in groups}
    worst = min(each, key=lambda group: each[group])
    shown = {group: round(value, 3) for group, (value, _) in each.items()}
    figure("worst_group_speedup", each[worst], floor=0.98, group=worst, groups=shown)
    both = sorted(by_way["combination"].keys() & by_way["plain"].keys())
    around = bootstrap_interval(
        lambda at: rate("combination", at) / rate("plain", at), np.array(both), n_resamples=2000
    )
    figure("overall_speedup", ratio("combination", "plain"), low=around.low, high=around.high, floor=1.5)
    shown = {group: round(ratio("lookup", "plain", group)[0], 3) for group in groups}
    peer = "transformers lookup"
    cut = [row["n_tokens"] >= N_TIMED[label] for row in by_way["plain"].values() if row["group"] in COPYING]
    figure(
        "lookup_summarisation_speedup", ratio("lookup", "plain", *COPYING), floor=1.8, groups=shown,
        over_transformers=round(ratio("lookup", peer, *COPYING)[0], 3), cut_short=round(float(np.mean(cut)), 3),
    )  # fmt: skip
    # Reading the prompt takes as long whoever drafts, and bounds what a short call can gain.
    figure("lookup_speedup_after_the_prompt", ratio("lookup", "plain", *COPYING, part="written"), floor=1.8)
    early, _ = ratio("combination", "plain", part="early")
    copied = ratio("lookup", "plain", *COPYING, part="early")
    figure(f"lookup_speedup_of_{N_EARLY}_tokens", copied, overall=round(early, 3))
    peers = {name: ratio("combination", name) for name in by_way if name.startswith("transformers")}
    best = min(peers, key=lambda name: peers[name])
    figure(
        "vs_transformers_best", peers[best], floor=1.2, peer=best, peer_value=rate(best, by_way[best]),
        peer_source="measured",
    )  # fmt: skip
    peer = "transformers generate"
    figure(
        "plain_vs_generate", ratio("plain", peer), floor=1.0, peer=peer, peer_value=rate(peer, by_way[peer]),
        peer_source="measured",
    )  # fmt: skip
    if (peer := "llama.cpp lookup") in by_way:
        figure(
            "vs_llama_cpp", ratio("combination", peer), peer="llama.cpp n-gram speculation, 4-bit weights against fp32",
            peer_value=rate(peer, by_way[peer]), peer_source="measured",
            its_own_speedup=round(ratio(peer, "llama.cpp plain")[0], 3),
        )  # fmt: skip


def _written(clock: Callable[[], float], decoder: Decoder, request: Request) -> dict[str, float]:
    """How many tokens were written, and the seconds to the first, those of the prompt, and to the early ones."""
    stats, made = Stats(), {"first": 0.0, "n_early": 0, "early": 0.0}
    start, pieces = clock(), decoder.stream(request, stats)
    while True:
        try:
            next(pieces)
            made["first"] = made["first"] or clock() - start
            if not made["n_early"] and stats.n_tokens >= N_EARLY:
                made["n_early"], made["early"] = stats.n_tokens, clock() - start
        except StopIteration as end:
            n = max(1, end.value.usage.completion_tokens)
            if not made["n_early"]:
                made["n_early"], made["early"] = n, clock() - start
            return made | {"n_tokens": n}


def _generated(model: TransformersModel, network: Any, request: Request, **how: Any) -> dict[str, float]:
    import torch

    tokenizer, _ = model._parts()
    ids = torch.tensor([model.tokenizer.encode_request(request)])
    with torch.inference_mode():
        made = network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_tokens, do_sample=False,
            temperature=None, top_p=None, pad_token_id=tokenizer.eos_token_id, **how,
        )  # fmt: skip
    return {"n_tokens": made.shape[1] - ids.shape[1]}


def llama_cpp(target: str) -> dict[str, Any]:
    """llama.cpp on the same model's 4-bit file, plain and with its own n-gram speculation."""
    try:
        import xllamacpp
    except ImportError:
        print("no xllamacpp: llama.cpp is left out")
        return {}
    import torch

    servers = {}
    for name, kind in (("llama.cpp plain", "NONE"), ("llama.cpp lookup", "NGRAM_SIMPLE")):
        params = xllamacpp.CommonParams()
        params.model.path = str(catalog.path(target))
        params.n_ctx, params.n_parallel, params.verbosity = 4096, 1, -1
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = torch.get_num_threads()
        params.speculative.types = [getattr(xllamacpp.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{kind}")]
        servers[name] = xllamacpp.Server(params)
    return servers


def _served(server: Any, request: Request) -> dict[str, float]:
    body = {key: value for key, value in request.to_json().items() if key != "model"}
    data = server.handle_chat_completions(json.loads(json.dumps({**body, "cache_prompt": False})))
    return {"n_tokens": max(1, data["usage"]["completion_tokens"])}


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
        path, following = acceptance.accept(ArrayLogits(target[[0, token + 1]]), Draft([token], q), rng)
        first, second = (token, following) if path else (following, int(rng.choice(12, p=p_second[following])))
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
        path, following = acceptance.accept(real, Draft([token], drafted), rng)
        seen[token if path else following] += 1
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
    kept = Kept(run, "speculative", "structured")
    end = time.perf_counter() + (10 if run.quick else 200 if run.only else 60)
    while len(kept.rows) < 1_000 and (not kept.rows or time.perf_counter() < end):
        n = len(kept.rows)
        asked = Request.of(f"{questions[n]} JSON:", temperature=1.0, seed=n, max_tokens=48, extra=form)
        try:
            found = json.loads(decoder.generate([asked])[0].text)
            kept.add(failed=set(found) != {"intent", "urgent"})
        except json.JSONDecodeError:
            kept.add(failed=True)
    n, n_failed = len(kept.rows), sum(row["failed"] for row in kept.rows)
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
