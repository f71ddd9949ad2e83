"""What tells a step from one with other settings, in any process: a text of all that it was made with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

__all__ = ["described"]


def described(value: Any) -> str:
    """A text that is the same for values that do the same, wherever they lie in memory.

    Of an object it is the class and its attributes, less those whose name begins with an underscore: they hold what was
    loaded or worked out since it was made. Of a function it is the code, with what it closes over.

    Examples
    --------
    >>> described({"high": 2, "low": 1.5}) == described({"low": 1.5, "high": 2})
    True
    >>> described(lambda x: x + 1) == described(lambda x: x + 2)
    False
    """
    return _described(value, ())


def _described(value: Any, within: tuple[int, ...]) -> str:
    if value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
        return repr(value)
    if id(value) in within:
        return "itself"
    within = (*within, id(value))

    def each(values: Any) -> list[str]:
        return [_described(one, within) for one in values]

    if hasattr(value, "__wrapped__"):  # such as a compiled or cached function, which grows by being called
        return _described(value.__wrapped__, within)
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, PurePath):
        return f"path {value}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(': '.join(each(pair)) for pair in value.items()))}}}"
    if isinstance(value, Set):
        return f"{{{', '.join(sorted(each(value)))}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(each(value))}]"
    if isinstance(value, partial):
        return f"partial {each((value.func, value.args, value.keywords))}"
    if isinstance(value, MethodType):
        return f"method {each((value.__self__, value.__func__))}"
    if isinstance(value, FunctionType):
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = (_code(value.__code__), value.__defaults__, value.__kwdefaults__, closed)
        return f"{value.__module__}.{value.__qualname__} {each(parts)}"
    kind = value if isinstance(value, type) else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, type):
        return name
    names = {*getattr(value, "__dict__", ()), *(slot for base in kind.__mro__ for slot in _slots(base))}
    public = sorted(one for one in names if not one.startswith("_") and hasattr(value, one))
    return f"{name} {_described({one: getattr(value, one) for one in public}, within)}"


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def _code(code: CodeType) -> str:
    constants = [_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
