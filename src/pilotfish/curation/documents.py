"""Documents, what is none, and the shards of files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from pilotfish.errors import InputError

__all__ = ["Document", "Rejected", "Shard", "as_document", "named"]


class Document(NamedTuple):
    """One text with where it comes from.

    Parameters
    ----------
    text : str
        The text.
    id : str
        Its ``id`` field, or its file and place in it.
    fields : mapping
        Every field of the record, the text included.
    raw : bytes or None
        The line it was read from, written again as it is while the text is unchanged.
    """

    text: str
    id: str = ""
    fields: Mapping[str, Any] = {}
    raw: bytes | None = None

    def line(self, field: str = "text", **more: Any) -> bytes:
        """The record as one JSON line, with further fields."""
        if self.raw is not None and not more and self.fields.get(field) is self.text:
            return self.raw + b"\n"
        record = {**({"id": self.id} if self.id else {}), **self.fields, field: self.text, **more}
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY, default=str)


class Rejected(NamedTuple):
    """Input that is no document: why, where, and its beginning."""

    reason: str
    where: str
    start: str = ""


class Shard(NamedTuple):
    """A file, or a part of one cut at line ends: from byte ``start`` to ``end`` (-1: the end of the file)."""

    path: str
    start: int = 0
    end: int = -1


def as_document(item: Any, field: str = "text", where: str = "") -> Document:
    """Make a document of a text, a mapping with a text field, or a document.

    Raises
    ------
    InputError
        When the field is missing or is no text.

    Examples
    --------
    >>> as_document({"id": 7, "text": "One."}).id
    '7'
    """
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(item, where)
    if not isinstance(item, Mapping):
        raise InputError(f"A document is a {type(item).__name__}: give a text, or a mapping with field {field!r}.")
    text = item.get(field)
    if not isinstance(text, str):
        raise InputError(f"Field {field!r} of document {where or '?'} is {type(text).__name__}: give text.")
    return Document(text, named(item, where), item)


def named(record: Mapping[str, Any], where: str) -> str:
    """The ``id`` of a record; where it has none, its place."""
    name = record.get("id")
    return where if name is None else str(name)
