"""What may be written: JSON of a schema, one of some texts, or a grammar, through llguidance."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from pilotfish.errors import InputError, ModelError, missing_extra
from pilotfish.models.sessions import ArrayLogits
from pilotfish.protocols import Logits, Tokenizer
from pilotfish.types import Request

__all__ = ["GrammarConstraint", "constraint_of"]

_lock = threading.Lock()
_tokenizers: WeakKeyDictionary[Tokenizer, Any] = WeakKeyDictionary()


class GrammarConstraint:
    """A grammar that the text must follow; the model may end only where the grammar may.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the model.
    grammar : str
        In llguidance's form.
    field : str
        Of the request that states it, for errors.

    Raises
    ------
    InputError
        When the grammar is wrong.
    """

    def __init__(self, tokenizer: Tokenizer, grammar: str, field: str = "grammar") -> None:
        from llguidance import LLMatcher

        self._n_vocabulary = tokenizer.n_vocabulary
        self._ends = tokenizer.end_tokens
        self._matcher = LLMatcher(_of_llguidance(tokenizer), grammar, log_level=0)
        if self._matcher.is_error():
            raise InputError(f"Field {field!r} is wrong ({_first_line(self._matcher)}): mend it.")
        self._field = field

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of some further tokens may be written."""
        return int(self._matcher.validate_tokens(list(tokens)))

    def forced(self) -> list[int]:
        """Tokens that must come next, where there is no choice."""
        return list(self._matcher.compute_ff_tokens())

    def restrict(self, logits: Logits, draft: Sequence[int]) -> ArrayLogits:
        """The log-probabilities at each place of a draft and after it, minus infinity for what may not come there."""
        values = np.full((len(draft) + 1, self._n_vocabulary), -np.inf, dtype=np.float32)
        logs = logits.log_probs()
        for i in range(len(draft) + 1):
            mask = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: self._n_vocabulary] != 0
            np.copyto(values[i, : mask.size], logs[i, : mask.size], where=mask)
            if not np.isfinite(values[i].max()):
                # All that may come has probability 0 by rounding: any of it is as good.
                values[i, : mask.size][mask] = 0.0
            if i < len(draft):
                self._matcher.consume_token(draft[i])
        if draft:
            self._matcher.rollback(len(draft))
        self._check()
        return ArrayLogits(values)

    def write(self, tokens: Sequence[int]) -> bool:
        """Note what was written; false when nothing more may come."""
        for token in tokens:
            if token in self._ends:
                return False
            self._matcher.consume_token(token)
        self._check()
        return not self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ModelError(
                f"Field {self._field!r} could not be followed ({_first_line(self._matcher)}): simplify it, and "
                "ask only for what the model's tokens can write."
            )


def constraint_of(request: Request, tokenizer: Tokenizer) -> GrammarConstraint | None:
    """The constraint that a request states, if any.

    Raises
    ------
    InputError
        When it states more than one, or a wrong one.
    MissingExtraError
        When llguidance is not installed.
    """
    form = request.extra.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else None
    if form is not None and kind not in ("text", "json_object", "json_schema"):
        raise InputError(f"Field 'response_format' is {form!r}: give type text, json_object or json_schema.")
    given = [name for name in ("choices", "grammar") if request.extra.get(name) is not None]
    given += ["response_format"] if kind in ("json_object", "json_schema") else []
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"Fields {' and '.join(repr(name) for name in given)} exclude each other: give one.")
    try:
        from llguidance import LLMatcher, gbnf_to_lark
    except ImportError:
        raise missing_extra("llguidance", "torch", "Constrained output") from None
    if given == ["choices"]:
        choices = request.extra["choices"]
        if not isinstance(choices, list | tuple) or not choices or not all(isinstance(c, str) and c for c in choices):
            raise InputError(f"Field 'choices' is {choices!r}: give a list of texts.")
        lark = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return GrammarConstraint(tokenizer, LLMatcher.grammar_from_lark(lark), "choices")
    if given == ["grammar"]:
        text = str(request.extra["grammar"])
        try:
            lark = gbnf_to_lark.any_to_lark(text)
        except Exception as error:
            raise InputError(f"Field 'grammar' is no grammar ({error}): give GBNF or Lark.") from error
        return GrammarConstraint(tokenizer, LLMatcher.grammar_from_lark(lark))
    schema: Any = {"type": "object"}
    if kind == "json_schema" and isinstance(form, dict):
        stated = form.get("json_schema")
        schema = stated.get("schema") if isinstance(stated, dict) else None
        if not isinstance(schema, dict):
            raise InputError("Field 'response_format.json_schema.schema' is missing: give the schema as an object.")
    # Without a bound on white space a small model may write nothing else to the end of its window.
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": r"[ \n]?"})
    return GrammarConstraint(tokenizer, grammar, "response_format")


def _first_line(matcher: Any) -> str:
    """What went wrong; after it llguidance shows its own state."""
    return str(matcher.get_error()).strip().partition("\n")[0]


class _Wrapped:
    """The vocabulary as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = min(tokenizer.end_tokens)
        self.bos_token_id = None
        self.tokens = [
            token or b"\xff<%d>" % i for i, token in enumerate(tokenizer.tokens)
        ]  # what has no bytes must not match any text
        self.special_token_ids = [i for i, token in enumerate(tokenizer.tokens) if not token]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)


def _of_llguidance(tokenizer: Tokenizer) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    with _lock:
        made = _tokenizers.get(tokenizer)
        if made is None:
            made = LLTokenizer(
                TokenizerWrapper(_Wrapped(tokenizer)),
                n_vocab=max(tokenizer.n_vocabulary, len(tokenizer.tokens)),
                eos_token=sorted(tokenizer.end_tokens),
            )
            _tokenizers[tokenizer] = made
        return made
