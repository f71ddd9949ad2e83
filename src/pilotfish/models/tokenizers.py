"""Tokenizers of models, as the decoding needs them: the bytes of each token, and where a reply begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from reprlib import repr as shown
from typing import Any

from pilotfish.errors import InputError
from pilotfish.types import Request

__all__ = ["HubTokenizer", "encode_request", "refuse_unheeded"]

_UNHEEDED = ("frequency_penalty", "functions", "logit_bias", "presence_penalty", "tools")


class HubTokenizer:
    """A tokenizer of transformers beside its model.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
        Of a byte-level or SentencePiece vocabulary.
    model : transformers.PreTrainedModel
        States the size of the vocabulary and the tokens that end a reply.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tokenizer = tokenizer
        self.model = model

    @property
    def n_vocabulary(self) -> int:
        """How many tokens the model gives a probability; padding of its last layer included."""
        return int(self.model.config.vocab_size)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a reply."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        return frozenset(int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None)

    @cached_property
    def tokens(self) -> Sequence[bytes]:
        """The bytes of each token; special tokens have none."""
        special = {int(i) for i in self.tokenizer.all_special_ids}
        special |= {int(i) for i, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        n = min(self.n_vocabulary, len(self.tokenizer))
        names = self.tokenizer.convert_ids_to_tokens(list(range(n)))
        of_byte = _byte_level()
        level = any("Ġ" in (name or "") for name in names)
        return [b"" if i in special or name is None else _bytes(name, of_byte, level) for i, name in enumerate(names)]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_request(self, request: Request) -> list[int]:
        """The tokens of a conversation up to where the reply begins.

        Raises
        ------
        InputError
            When the messages do not fit the chat template.
        """
        return encode_request(self.tokenizer, request)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; special tokens have none."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def encode_request(tokenizer: Any, request: Request) -> list[int]:
    """The tokens of a conversation, by the tokenizer's chat template where it has one.

    Raises
    ------
    InputError
        When the messages do not fit the template, or are no text.
    """
    try:
        for message in request.messages:
            message.text.encode()
    except UnicodeEncodeError as error:
        wrong = error.object[error.start]
        raise InputError(f"A message has {wrong!a}, which is no character: give text that was read as UTF-8.") from None
    if tokenizer.chat_template is None:
        return list(tokenizer(request.prompt)["input_ids"]) or [tokenizer.eos_token_id]
    messages = [{"role": m.role, "content": m.text} for m in request.messages]
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:
        raise InputError(f"The chat template refused the messages ({error}): mend their roles or text.") from error


def refuse_unheeded(request: Request) -> None:
    """Refuse what a model that only reads and writes text would leave unheeded without a word.

    Raises
    ------
    InputError
        When a message has an image or another part that is no text, or a field asks for tools or other probabilities.

    Examples
    --------
    >>> refuse_unheeded(Request.of("Hi", extra={"frequency_penalty": 0, "tools": []}))
    """
    for message in request.messages:
        parts = () if isinstance(message.content, str) else message.content
        for kind in (part.get("type") for part in parts):
            if kind != "text":
                raise InputError(
                    f"A message has a part of type {kind!r}, and the model reads text alone: leave it out."
                )
    for name in _UNHEEDED:
        value = request.extra.get(name)  # zero and empty ask for nothing
        if value and not (name == "tools" and request.extra.get("tool_choice") == "none"):
            raise InputError(f"Field {name!r} is {shown(value)}, which the model does not follow: leave it out.")


def _bytes(name: str, of_byte: dict[str, int], level: bool) -> bytes:
    if level:
        if all(character in of_byte for character in name):
            return bytes(of_byte[character] for character in name)
        return name.encode()
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("▁", " ").encode()


def _byte_level() -> dict[str, int]:
    """The characters that byte-level vocabularies write for bytes: printable ones stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}
