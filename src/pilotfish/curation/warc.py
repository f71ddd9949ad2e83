"""Texts of web archives: WARC responses and WET conversions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any, BinaryIO

from pilotfish.curation.documents import Document, Rejected

__all__ = ["read_warc"]


def read_warc(file: BinaryIO, name: str, longest: int) -> Iterator[Document | Rejected]:
    """Yield the page of each response and the text of each conversion; records of other kinds are passed over."""
    n = 0
    while line := file.readline(1 << 16):
        if not line.strip():
            continue
        n += 1
        where = f"{name}:{n}"
        if not line.startswith(b"WARC/"):
            yield Rejected("broken_warc", where, line[:80].decode("utf-8", "replace"))
            return
        headers = _headers(file)
        size = headers.get("content-length", "")
        if not size.isdecimal():
            yield Rejected("broken_warc", where, str(headers)[:80])
            return
        if int(size) > longest:
            yield Rejected("too_long", where, headers.get("warc-target-uri", ""))
            left = int(size)
            while left and (part := file.read(min(left, 1 << 20))):
                left -= len(part)
            continue
        content = file.read(int(size))
        if len(content) < int(size):
            yield Rejected("truncated_file", where, headers.get("warc-target-uri", ""))
            return
        uri = headers.get("warc-target-uri", where)
        if headers.get("warc-type") == "conversion":
            yield Document(content.decode("utf-8", "replace"), uri, {"url": uri})
        elif headers.get("warc-type") == "response":
            inner = io.BytesIO(content)
            inner.readline()
            http = _headers(inner)
            if "html" in http.get("content-type", "html"):
                charset = http.get("content-type", "").partition("charset=")[2].strip(' "') or "utf-8"
                yield Document(_page_text(inner.read(), charset), uri, {"url": uri})


def _headers(file: Any) -> dict[str, str]:
    found = {}
    while (line := file.readline(1 << 16)) and line.strip():
        key, _, value = line.decode("utf-8", "replace").partition(":")
        found[key.strip().lower()] = value.strip()
    return found


class _PageText(HTMLParser):
    """Keeps what a page shows: a line for each block, nothing of scripts and styles."""

    _HIDDEN = frozenset({"script", "style", "noscript", "template", "head", "nav", "footer"})
    _BLOCKS = frozenset({"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "pre"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002 - the parser's own shape
        # A page may leave out the end of its head: the body ends it.
        self.hidden = 0 if tag == "body" else self.hidden + (tag in self._HIDDEN)
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in self._HIDDEN and self.hidden > 0
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def parse_marked_section(self, i: int, report: bool = True) -> int:  # noqa: ARG002 - the parser's own shape
        # In a page these are comments, whatever their name; the base class knows some names and stops at others.
        return self.parse_bogus_comment(i)

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _page_text(content: bytes, charset: str) -> str:
    try:
        # Some codecs leave halves of characters, which no file of documents can hold.
        page = content.decode(charset, "replace").encode("utf-8", "replace").decode()
    except (LookupError, ValueError):
        page = content.decode("utf-8", "replace")
    parser = _PageText()
    parser.feed(page)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)
