"""Embedders: texts to unit vectors, on CPU, without torch."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError
from pilotfish.models import catalog
from pilotfish.models.bert import GRAPH_VERSION, Precision, build_onnx, parsed_poolings
from pilotfish.models.calibration import SENTENCES

if TYPE_CHECKING:
    from pilotfish.models.int16 import Int16Encoder

__all__ = ["OnnxEmbedder", "StaticEmbedder", "TokenPrecision", "batches", "build_onnx", "checked_texts"]

TokenPrecision = Literal["fp32", "int16", "int8"]
_Vectors = NDArray[np.float32]
# Longer runs measured slower: their activations leave the core's cache.
_TOKENS_PER_RUN = 512
_TOKENS_PER_THREAD = 256
_CHARACTERS_PER_TOKEN = 128
_MOST_WORDS = 65_536
_LONGEST_WORD = 64
_SPACE = "\u2581"
_SPACES_KEPT = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ],
}


class OnnxEmbedder:
    """A sentence encoder of the BERT family, run by onnxruntime.

    Parameters
    ----------
    model : str or Path
        A name of the catalog, a folder with ``model.safetensors``, ``tokenizer.json`` and ``config.json``, or an
        ``.onnx`` file written by :func:`build_onnx` with ``tokenizer.json`` beside it.
    precision : {"fp32", "int16", "int8"}
        ``fp32`` is exact; ``int8`` about twice as fast. An ``.onnx`` file keeps its own. ``int16`` is for ``tokens``:
        near ``fp32`` (cosines within about 1e-4) in half its time by products of our own; where the processor lacks the
        instructions (AVX-512 or AVX VNNI), or the encoder has odd widths, it is ``fp32``.
    poolings : sequence of str
        ``mean`` or ``max`` over the tokens of the last layer, or with ``@3`` of the third, ``@0`` of the embeddings.
        The vectors of several are joined, each of unit length; layers above the highest one pooled are not computed.
        An ``.onnx`` file keeps its own. With ``tokens``, alone, use :meth:`token_ids` and :meth:`token_vectors`.
    max_length : int
        Tokens kept of each text, special tokens included; at most as many as the model has positions. Of a longer text
        only the first ``128 * max_length`` characters are looked at.
    n_threads : int, optional
        Threads; all cores by default.

    Examples
    --------
    >>> OnnxEmbedder("all-minilm-l6-v2", precision="int8", n_threads=1).max_length
    256

    References
    ----------
    Reimers and Gurevych, Sentence-BERT, arXiv:1908.10084. Wang et al., MiniLM, arXiv:2002.10957.
    """

    def __init__(
        self,
        model: str | Path = "all-minilm-l6-v2",
        *,
        precision: TokenPrecision = "fp32",
        poolings: Sequence[str] = ("mean",),
        max_length: int = 256,
        n_threads: int | None = None,
    ) -> None:
        self.model = model
        self.precision = precision
        self.poolings = poolings
        self.max_length = max_length
        self.n_threads = n_threads
        self._loaded: tuple[Any, _Graph | Int16Encoder] | None = None
        self._whole: Any = None
        self._lock = threading.Lock()

    @property
    def n_dimensions(self) -> int:
        """Length of each vector."""
        return self._parts()[1].n_dimensions

    def embed(self, texts: Sequence[str]) -> _Vectors:
        """Embed a batch as an array (n, n_dimensions) of unit vectors, one for each pooling.

        Raises
        ------
        InputError
            When ``texts`` is not a sequence of texts.
        """
        limit = _CHARACTERS_PER_TOKEN * self.max_length
        texts = [text[:limit] for text in checked_texts(texts)]
        tokenizer, reader = self._parts()
        if not isinstance(reader, _Graph) or reader.reads_tokens:
            raise InputError(f"OnnxEmbedder poolings are {tuple(self.poolings)}: use token_vectors, or ('mean',).")
        ids = _token_ids(tokenizer, texts, special=True)
        lengths = np.array([len(i) for i in ids], dtype=np.int64)
        vectors = np.empty((len(texts), self.n_dimensions), dtype=np.float32)
        for rows in batches(lengths):
            vectors[rows] = reader.run([ids[row] for row in rows])
        return vectors

    @property
    def window(self) -> int:
        """Most tokens that one run reads: ``max_length``, or the model's positions where those are fewer."""
        return min(self.max_length, self._parts()[1].n_positions)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as the model reads it: special tokens included, cut at ``max_length``."""
        return _token_ids(self._parts()[0], checked_texts(texts), special=True)

    def all_token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each whole text, without special tokens and never cut."""
        folder = catalog.resolve(self.model)
        if self._whole is None:
            self._whole = _tokenizer((folder.parent if folder.is_file() else folder) / "tokenizer.json")
        return _token_ids(self._whole, checked_texts(texts), special=False)

    def token_vectors(self, ids: Sequence[Sequence[int]]) -> list[_Vectors]:
        """Unit vector of each token, (n_tokens, n_dimensions) a text, from token ids.

        Texts of like length are read together, ``n_threads`` such runs beside each other.

        Raises
        ------
        InputError
            When the model was not made with the pooling ``tokens``.
        """
        _, reader = self._parts()
        if isinstance(reader, _Graph) and not reader.reads_tokens:
            raise InputError(f"OnnxEmbedder poolings are {tuple(self.poolings)}: use ('tokens',).")
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        vectors: list[_Vectors] = [np.empty((0, self.n_dimensions), dtype=np.float32)] * len(ids)
        some = np.flatnonzero(lengths > 0)

        def read(at: NDArray[np.int64]) -> None:
            for row, part in zip(some[at], reader.read([ids[row] for row in some[at]]), strict=True):
                vectors[row] = part

        n_threads = (self.n_threads or os.cpu_count() or 1) if self._reads_tokens else 1
        with ThreadPoolExecutor(n_threads, "pilotfish-embedder") as pool:
            list(pool.map(read, batches(lengths[some], _TOKENS_PER_THREAD)))
        return vectors

    @property
    def _reads_tokens(self) -> bool:
        """Whether runs go on beside each other, each by one thread, since there always are many."""
        return str(self.poolings[0]).startswith("tokens")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "precision", "poolings", "max_length", "n_threads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state.pop("model"), **state)  # type: ignore[misc]

    def _parts(self) -> tuple[Any, _Graph | Int16Encoder]:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> tuple[Any, _Graph | Int16Encoder]:
        if self.precision not in get_args(TokenPrecision):
            raise InputError(f"OnnxEmbedder precision is {self.precision!r}: use 'fp32', 'int16' or 'int8'.")
        if self.precision == "int16" and not self._reads_tokens:
            raise InputError(f"OnnxEmbedder precision is 'int16' and poolings {tuple(self.poolings)}: use ('tokens',).")
        if self.max_length < 3:
            raise InputError(f"OnnxEmbedder max_length is {self.max_length}: use at least 3.")
        place = catalog.resolve(self.model)
        folder = place.parent if place.is_file() else place
        tokenizer = _tokenizer(folder / "tokenizer.json")
        reader = self._graph(place) if place.is_file() else self._reader(folder, tokenizer)
        tokenizer.enable_truncation(min(self.max_length, reader.n_positions))
        return tokenizer, reader

    def _reader(self, folder: Path, tokenizer: Any) -> _Graph | Int16Encoder:
        if self.precision == "int16":
            from pilotfish.models.int16 import Int16Encoder, can_read

            weights, config = _weights(folder)
            if can_read(config):
                [(_, n_layers)] = parsed_poolings(self.poolings, int(config.get("num_hidden_layers", 0)))
                return Int16Encoder(weights, config, n_layers)
        return self._built(folder, tokenizer)

    def _built(self, folder: Path, tokenizer: Any) -> _Graph:
        """The graph cached beside the weights; built when it is missing, damaged or of other weights."""
        stat = (folder / "model.safetensors").stat()
        source = f"{GRAPH_VERSION} {stat.st_size} {stat.st_mtime_ns}"
        precision: Precision = "int8" if self.precision == "int8" else "fp32"
        place = folder / f"pilotfish-{'-'.join([precision, *self.poolings])}.onnx"
        try:
            graph = self._graph(place)
            if graph.noted.get("source") == source:
                return graph
        except Exception:  # noqa: BLE001, S110 - whatever is wrong with a cached file, it is built again
            pass

        def build(place: Path) -> _Graph:
            examples = _token_ids(tokenizer, SENTENCES, special=True)
            how: dict[str, Any] = {"precision": precision, "poolings": self.poolings, "calibration": examples}
            build_onnx(*_weights(folder), place, **how, metadata={"source": source})
            return self._graph(place)

        try:
            return build(place)
        except OSError:  # the folder cannot be written: the graph lives in memory only
            with TemporaryDirectory() as elsewhere:
                return build(Path(elsewhere) / place.name)

    def _graph(self, path: Path) -> _Graph:
        return _Graph(path, 1 if self._reads_tokens else self.n_threads)


class _Graph:
    """An encoder's ONNX graph in onnxruntime."""

    def __init__(self, path: Path, n_threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = n_threads or 0
        # Waiting threads must not burn the cores that the caller needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The further levels would join sums and layer norms into an operator that is six times slower.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        shape = self._session.get_outputs()[0].shape
        self.n_dimensions, self.reads_tokens = int(shape[-1]), len(shape) == 3
        self.noted: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.n_positions = int(self.noted.get("n_positions", sys.maxsize))

    def run(self, ids: Sequence[Sequence[int]]) -> _Vectors:
        """The graph's output for texts read together."""
        lengths = np.array([len(row) for row in ids])
        tokens = np.zeros((len(ids), lengths.max()), dtype=np.int32)
        for line, row in zip(tokens, ids, strict=True):
            line[: len(row)] = row
        mask = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)
        vectors: _Vectors = self._session.run(["embedding"], {"input_ids": tokens, "attention_mask": mask})[0]
        return vectors

    def read(self, ids: Sequence[Sequence[int]]) -> list[_Vectors]:
        """Unit vector of each token, (n_tokens, n_dimensions) a text."""
        return [part[: len(row)] for row, part in zip(ids, self.run(ids), strict=True)]


def _weights(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """An encoder's weights and its config."""
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text(encoding="utf-8"))


class StaticEmbedder:
    """The mean of fixed token vectors: about a hundred times faster than an encoder, and blind to word order.

    Parameters
    ----------
    model : str or Path
        A name of the catalog, or a folder with ``model.safetensors`` (one table of vectors) and ``tokenizer.json``.

    Examples
    --------
    >>> StaticEmbedder().model
    'wordllama'

    References
    ----------
    Arora et al., A simple but tough-to-beat baseline for sentence embeddings, ICLR 2017, for the idea.
    """

    def __init__(self, model: str | Path = "wordllama") -> None:
        self.model = model
        self._loaded: tuple[Any, _Vectors, bool] | None = None
        self._words: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    @property
    def n_dimensions(self) -> int:
        """Length of each vector."""
        return int(self._parts()[1].shape[1])

    def embed(self, texts: Sequence[str]) -> _Vectors:
        """Embed a batch as an array (n, n_dimensions) of unit vectors.

        A text without a token gets the direction of the table's mean.

        Raises
        ------
        InputError
            When ``texts`` is not a sequence of texts.
        """
        tokenizer, table, by_word = self._parts()
        sums = np.zeros((len(texts), table.shape[1]), dtype=np.float32)
        alone = by_word and len(texts) == 1 and _splits(checked_texts(texts)[0])
        found = (
            [self._ids_by_word(tokenizer, texts[0])] if alone else _token_ids(tokenizer, checked_texts(texts), False)
        )
        for row, ids in enumerate(found):
            if ids:
                tokens = np.minimum(np.array(ids), table.shape[0] - 1)
                sums[row] = sum(table[tokens[i : i + 4096]].sum(axis=0) for i in range(0, tokens.size, 4096))
        empty = ~sums.any(axis=1)
        if empty.any():
            sums[empty] = table.mean(axis=0)
        norms: _Vectors = np.linalg.norm(sums, axis=1, keepdims=True)
        return sums / norms

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"])  # type: ignore[misc]

    def _ids_by_word(self, tokenizer: Any, text: str) -> list[int]:
        """Tokens of a text alone from those of its words, which mostly were seen before."""
        ids: list[int] = []
        for word in text.split(" "):
            known = self._words.get(word)
            if known is None:
                [known] = _token_ids(tokenizer, [word], special=False)
                if len(word) <= _LONGEST_WORD:
                    if len(self._words) >= _MOST_WORDS:
                        self._words = {}
                    self._words[word] = known
            ids += known
        return ids

    def _parts(self) -> tuple[Any, _Vectors, bool]:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> tuple[Any, _Vectors, bool]:
        from safetensors.numpy import load_file

        folder = catalog.resolve(self.model)
        tables = [value for value in load_file(folder / "model.safetensors").values() if value.ndim == 2]
        if len(tables) != 1:
            raise InputError(f"{folder / 'model.safetensors'} has {len(tables)} tables: give a file with one.")
        tokenizer = _tokenizer(folder / "tokenizer.json")
        return tokenizer, tables[0].astype(np.float32), _keeps_words_apart(tokenizer)


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _token_ids(tokenizer: Any, texts: Sequence[str], special: bool) -> list[list[int]]:
    # Half of a surrogate pair has no UTF-8 form.
    clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    if len(clean) == 1:
        return [tokenizer.encode(clean[0], add_special_tokens=special).ids]
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(clean, add_special_tokens=special)]


def _keeps_words_apart(tokenizer: Any) -> bool:
    """Whether no token reaches over a space, so that a word has the same tokens alone as in a text."""
    plain = json.loads(tokenizer.to_str())
    return (
        plain["normalizer"] == _SPACES_KEPT
        and plain["pre_tokenizer"] is None
        and not any(_SPACE in token.lstrip(_SPACE) for token in plain["model"]["vocab"])
    )


def _splits(text: str) -> bool:
    """Whether a text is words with one space between them, and holds no special token nor the sign for a space."""
    return bool(text) and " " not in (text[0], text[-1]) and not any(part in text for part in ("  ", "<", _SPACE))


def batches(lengths: NDArray[np.int64], n_tokens: int = _TOKENS_PER_RUN) -> Iterator[NDArray[np.int64]]:
    """Rows of similar length, a bounded number of tokens at a time, the longest first.

    Examples
    --------
    >>> [rows.tolist() for rows in batches(np.array([3, 9, 3]), 9)]
    [[1], [0, 2]]
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < order.size:
        n_rows = max(1, n_tokens // int(lengths[order[start]]))
        yield order[start : start + n_rows]
        start += n_rows


def checked_texts(texts: Sequence[str]) -> Sequence[str]:
    """The texts, if they are a sequence of texts.

    Raises
    ------
    InputError
        When they are not; the sentence names the first that is none.
    """
    if isinstance(texts, str):
        raise InputError("texts is one text: give a list of texts.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"texts[{i}] is a {type(text).__name__}: give text.")
    return texts
