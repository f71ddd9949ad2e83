"""Causal language models through torch and transformers."""

from __future__ import annotations

import copy
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pilotfish.errors import ContextLengthError, InputError, ModelError, missing_extra
from pilotfish.models import catalog, download
from pilotfish.models.packed import is_packed, packed
from pilotfish.models.sessions import TorchSession, memory_told
from pilotfish.models.tokenizers import HubTokenizer, encode_request, refuse_unheeded
from pilotfish.types import Reply, Request, TokenLogProb, Usage

if TYPE_CHECKING:
    from pilotfish.models.causal import CausalDecoder, CausalSession

__all__ = ["TransformersModel", "answer_loss", "first_layers", "low_rank", "pretrained"]

_RUNNING = "Running transformers models"
_KINDS = {"AutoModelForCausalLM": "language model", "AutoModelForSeq2SeqLM": "encoder-decoder"}
_HUB_TIMEOUT = 5.0


class TransformersModel:
    """A causal language model run by transformers; weights are read from safetensors or GGUF, never from pickles.

    Parameters
    ----------
    model : str or Path
        A GGUF name of the catalog, a ``.gguf`` file, a folder saved by transformers, or a repository of the hub. GGUF
        weights are converted once and kept in a folder beside the file.
    dtype : {"float32", "bfloat16", "float16"}
        Of the weights and the arithmetic.
    device : str
        Where torch runs it.
    batch_size : int
        Requests generated at once.

    Examples
    --------
    >>> TransformersModel("smollm2-135m-instruct", dtype="bfloat16").batch_size
    8
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str = "cpu",
        batch_size: int = 8,
    ) -> None:
        self.model = model
        self.dtype = dtype
        self.device = device
        self.batch_size = batch_size
        self._loaded: tuple[Any, Any] | None = None
        self._trained: tuple[Any, Any] | None = None
        self._tokenizer: HubTokenizer | None = None
        self._decoder: tuple[Any, CausalDecoder | None] | None = None
        self._lock = threading.Lock()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        MissingExtraError
            When torch or transformers is not installed.
        ContextLengthError
            When a prompt and its reply are longer than the model's window.
        InputError
            When a prompt does not fit the chat template, a request has images, tools, penalties or other fields that
            would go unheeded, or torch does not run the device here.
        ModelError
            When the model cannot be loaded, or the memory does not suffice.
        """
        if not requests:
            return []
        for request in requests:
            refuse_unheeded(request)
        tokenizer, _ = self._parts()
        prompts = [encode_request(tokenizer, request) for request in requests]
        replies: dict[int, Reply] = {}
        for rows in self._batches(requests, prompts):
            replies.update(self._generate(requests, prompts, rows))
        return [replies[i] for i in range(len(requests))]

    def log_probs(self, texts: Sequence[str]) -> list[tuple[TokenLogProb, ...]]:
        """Natural log-probability of each token of each text given those before it; the first token has none.

        Raises
        ------
        ContextLengthError
            When a text is longer than the model's window.
        """
        import torch

        tokenizer, model = self._parts()
        results: list[tuple[TokenLogProb, ...]] = []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"].to(self.device)
            self._check_length(ids.shape[1])
            if ids.shape[1] < 2:
                results.append(())
                continue
            with torch.inference_mode():
                logits = model(ids).logits[0, :-1].float()
            logs = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
            tokens = tokenizer.convert_ids_to_tokens(ids[0, 1:].tolist())
            results.append(tuple(TokenLogProb(token, log) for token, log in zip(tokens, logs, strict=True)))
        return results

    @property
    def tokenizer(self) -> HubTokenizer:
        """The model's tokenizer."""
        if self._tokenizer is None:
            tokenizer, model = self._parts()
            self._tokenizer = HubTokenizer(tokenizer, model)
        return self._tokenizer

    @property
    def window(self) -> int:
        """The longest text it can read, in tokens."""
        return self._window()

    def session(self) -> CausalSession | TorchSession:
        """Begin a text."""
        network, window = self._parts()[1], self._window()
        if self._decoder is None or self._decoder[0] is not network:
            self._decoder = network, _decoder_of(network)
        decoder = self._decoder[1]
        return TorchSession(network, window) if decoder is None else decoder.session(window)

    def first_layers(self, n_layers: int) -> TransformersModel:
        """The same model without its later layers; the weights are shared.

        Raises
        ------
        InputError
            When it has fewer layers, or is not built of ``model.layers`` as most decoders are.
        """
        tokenizer, model = self._parts()
        layers = getattr(getattr(model, "model", None), "layers", None)
        if layers is None or not 1 <= n_layers <= len(layers):
            n = len(layers) if layers is not None else "no 'model.layers'"
            raise InputError(f"n_layers is {n_layers}, but the model has {n}: give 1 to its number of layers.")
        cut = TransformersModel(self.model, dtype=self.dtype, device=self.device, batch_size=self.batch_size)
        cut._loaded = (tokenizer, first_layers(model, n_layers))
        return cut

    def _generate(
        self, requests: Sequence[Request], prompts: Sequence[list[int]], rows: Sequence[int]
    ) -> Iterator[tuple[int, Reply]]:
        import torch

        start = time.perf_counter()
        tokenizer, model = self._parts()
        first = requests[rows[0]]
        longest = max(len(prompts[i]) for i in rows)
        n_new = self._window() - longest if first.max_tokens is None else first.max_tokens
        self._check_length(longest + min(n_new, 1))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (longest - len(prompts[i])) + prompts[i] for i in rows], device=self.device)
        mask = torch.tensor(
            [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in rows], device=self.device
        )
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if first.temperature is None or first.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": first.temperature or 1.0,
                "top_p": first.top_p or 1.0,
                "top_k": 0,
            }
        memory = memory_told(f"{len(rows)} texts of {longest} tokens", "shorten them, or give a smaller batch_size")
        with memory, torch.inference_mode(), torch.random.fork_rng(enabled=first.seed is not None):
            if first.seed is not None:
                torch.manual_seed(first.seed)
            made = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max(1, min(n_new, self._window() - longest)),
                pad_token_id=pad,
                return_dict_in_generate=True,
                output_logits=first.log_probs is not None,
                **sampling,
            )
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        latency = time.perf_counter() - start
        for row, i in enumerate(rows):
            tokens = made.sequences[row, longest:].tolist()
            end = next((at for at, token in enumerate(tokens) if token in ends), None)
            kept = tokens if end is None else tokens[:end]
            text, n_kept, stopped = _cut(tokenizer, kept, requests[i].stop)
            logs = (
                _log_probs(tokenizer, [step[row] for step in made.logits[:n_kept]], kept, first.log_probs)
                if first.log_probs is not None
                else ()
            )
            n_written = n_kept + (end is not None and not stopped)
            yield (
                i,
                Reply(
                    text,
                    model=str(self.model),
                    usage=Usage(len(prompts[i]), n_written, latency=latency),
                    finish_reason="stop" if stopped or end is not None else "length",
                    log_probs=logs,
                ),
            )

    def _batches(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        """Rows with the same settings and prompts of similar length."""
        alike: dict[Any, list[int]] = {}
        for i, r in enumerate(requests):
            alike.setdefault((r.temperature, r.top_p, r.max_tokens, r.seed, r.log_probs), []).append(i)
        for rows in alike.values():
            rows.sort(key=lambda i: len(prompts[i]))
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size]

    def _window(self) -> int:
        return int(getattr(self._parts()[1].config, "max_position_embeddings", 2**31))

    def _check_length(self, n_tokens: int) -> None:
        if n_tokens > self._window():
            raise ContextLengthError(
                f"Prompt and reply have {n_tokens} tokens, but the model's window has {self._window()}: shorten them."
            )

    def _parts(self) -> tuple[Any, Any]:
        with self._lock:
            if self._loaded is None:
                tokenizer, network = self._trained or self._load()
                with self._memory():
                    self._loaded = (tokenizer, packed(network))
            return self._loaded

    def _trainable(self) -> tuple[Any, Any]:
        """Tokenizer and network with plain weights: read again, since the packed ones are of no use to training."""
        with self._lock:
            if self._trained is None and self._loaded is not None and not is_packed(self._loaded[1]):
                return self._loaded
            return self._trained or self._load()

    def _load(self) -> tuple[Any, Any]:
        _library(_RUNNING)
        import torch

        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            why = str(error).strip().partition("\n")[0].rstrip(".")
            raise InputError(f"device is {self.device!r}, which torch does not run here ({why}): give cpu.") from None
        with self._memory():
            tokenizer, model = pretrained("AutoModelForCausalLM", self.model, _RUNNING, dtype=self.dtype)
            return tokenizer, model.to(self.device).requires_grad_(False)

    def _memory(self) -> AbstractContextManager[None]:
        return memory_told(f"the weights of {self.model}", "free some, or use a smaller model or dtype bfloat16")


def pretrained(kind: str, source: str | Path, why: str, **how: Any) -> tuple[Any, Any]:
    """Tokenizer and network, ready to read with; weights from safetensors and GGUF files only.

    Parameters
    ----------
    kind : str
        A class of transformers such as ``AutoModelForCausalLM``.
    source : str or Path
        A name of the catalog, a folder, a GGUF file, or a name of the hub.
    why : str
        What needs it, as the start of a sentence.
    **how
        Given on to ``from_pretrained``.

    Raises
    ------
    MissingExtraError
        When torch or transformers is not installed.
    ModelError
        When nothing can be loaded from there.
    """
    transformers = _library(why)
    looks: dict[str, Any] = {}
    if Path(source).exists() or str(source) in catalog.NAMES:
        source = catalog.resolve(str(source))
        if Path(source).suffix == ".gguf":
            source = _converted(Path(source))
    else:
        looks["local_files_only"] = not _at_hub(str(source))
    try:
        with nullcontext() if looks.get("local_files_only") is False else _without_bars(transformers.utils.logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **looks)
            network, found = getattr(transformers, kind).from_pretrained(
                source, use_safetensors=True, output_loading_info=True, **looks, **how
            )
    except (OSError, ValueError) as error:
        why = str(error).strip().split("\n")[0].rstrip(".")
        listed = "a name of the catalog, " if kind == "AutoModelForCausalLM" else ""
        raise ModelError(
            f"transformers could not load {source} ({why}): give {listed}a folder, or a name of the hub."
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers fills them with noise
        what = _KINDS.get(kind, "classifier")
        raise ModelError(f"{source} has no weights for {missing[0]}, which a {what} needs: give one trained as such.")
    return tokenizer, network.eval()


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    """Reading weights that are here takes a second, and of those that are missing we tell ourselves."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _at_hub(name: str) -> bool:
    """Whether the hub answers, asked once: what looks for files there tries again for most of a minute.

    Raises
    ------
    ModelError
        When it answers that it has no model of that name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    asked = download.in_time(lambda: HfApi().model_info(name, timeout=_HUB_TIMEOUT), _HUB_TIMEOUT)
    error = asked.exception() if asked.done() else None
    if isinstance(error, RepositoryNotFoundError):
        raise ModelError(
            f"The hub shows no model {name}: mend the name, log in to the hub where it is private, or give a folder."
        ) from None
    return asked.done() and (error is None or isinstance(error, HfHubHTTPError))


def _library(why: str) -> Any:
    try:
        import torch  # noqa: F401 - without it transformers fails later, and less clearly
        import transformers
    except ImportError as error:
        raise missing_extra(error.name or "torch", "torch", why) from None
    return transformers


def _decoder_of(network: Any) -> CausalDecoder | None:
    if not is_packed(network):
        return None
    from pilotfish.models.causal import CausalDecoder

    return CausalDecoder.of(network)


def low_rank(model: Any, rank: int, why: str) -> Any:
    """The network with low-rank matrices to train beside its linear layers (arXiv:2106.09685); the rest is frozen.

    Raises
    ------
    MissingExtraError
        When peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise missing_extra("peft", "torch", why) from None
    with warnings.catch_warnings():  # peft may still use a name that transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def answer_loss(network: Any, ids: Any, wanted: Any) -> Any:
    """Mean log-loss of the tokens of ``wanted``, (n, length) as ``ids``, -100 where nothing is to be learned.

    The network's last layer, a quarter of a small model's work, is spared at places where no text has a token wanted.
    """
    import torch

    ahead = wanted[:, 1:]
    places = (ahead != -100).any(0).nonzero()[:, 0]
    logits = network(ids, logits_to_keep=places).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), ahead[:, places].flatten(), ignore_index=-100
    )


def first_layers(model: Any, n_layers: int) -> Any:
    """A model of transformers without its later layers; the weights are shared."""
    import torch

    cut, body, config = copy.copy(model), copy.copy(model.model), copy.copy(model.config)
    config.num_hidden_layers = n_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n_layers]
    # A shallow copy of a module shares the table of its parts: without a copy of it the whole model would be cut.
    cut._modules, body._modules = dict(model._modules), dict(model.model._modules)
    body.layers = torch.nn.ModuleList(model.model.layers[:n_layers])
    cut.model = body
    cut.config = body.config = config
    return cut


def _converted(path: Path) -> Path:
    """The folder of a GGUF file's weights as safetensors; made at the first call."""
    transformers = _library(_RUNNING)
    folder = path.with_name(path.stem + "-transformers")
    if not folder.is_dir():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        new = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        try:
            tokenizer.save_pretrained(new)
            model.save_pretrained(new, safe_serialization=True)
            if not folder.is_dir():
                new.replace(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return folder


def _cut(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str]) -> tuple[str, int, bool]:
    """The text up to the first stop string, how many tokens it took, and whether there was one."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    found = [text.index(stop) for stop in stops if stop and stop in text]
    if not found:
        return text, len(tokens), False
    text = text[: min(found)]
    n_kept = 0
    while n_kept < len(tokens) and len(tokenizer.decode(tokens[:n_kept], skip_special_tokens=True)) <= len(text):
        n_kept += 1
    return text, n_kept, True


def _log_probs(
    tokenizer: Any, logits: Sequence[Any], tokens: Sequence[int], n_top: int | None
) -> tuple[TokenLogProb, ...]:
    import torch

    result = []
    for step, token in zip(logits, tokens, strict=False):
        logs = torch.log_softmax(step.float(), dim=-1)
        best = torch.topk(logs, n_top or 0)
        top = tuple(
            (tokenizer.decode([i]), log) for i, log in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        result.append(TokenLogProb(tokenizer.decode([token]), float(logs[token]), top))
    return tuple(result)
