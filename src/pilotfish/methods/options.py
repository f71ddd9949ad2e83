"""Options of methods, given as plain data."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pilotfish.errors import InputError

__all__ = ["missing", "read_options"]


def read_options(what: str, slug: str, given: Mapping[str, Any], make: Callable[..., Any]) -> dict[str, Any]:
    """Read options as the parameters of a method are annotated; what is not plain data is taken as it is.

    Raises
    ------
    InputError
        When the method has no such option, or one of another type; ``what`` and ``slug`` name the method.
    """
    parameters = inspect.signature(make).parameters
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        raise InputError(f"{what} {slug!r} has no option {unknown[0]!r}: it takes {', '.join(parameters) or 'none'}.")
    return {name: _read(slug, name, value, make) for name, value in given.items()}


def missing(make: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    """The arguments that a method needs and was not given."""
    parameters = inspect.signature(make).parameters
    return [k for k, p in parameters.items() if p.default is inspect.Parameter.empty and k not in given]


def _read(slug: str, name: str, value: Any, make: Callable[..., Any]) -> Any:
    if not isinstance(value, bool | int | float | str | list | dict):
        return value
    from pydantic import TypeAdapter, ValidationError

    hint = get_type_hints(make)[name]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = [kind for kind in kinds if _is_plain(kind)]
    if not plain or plain == [NoneType]:
        raise InputError(f"Option {name!r} of {slug!r} is {value!r}: it takes a part, which only Python can give.")
    try:
        return TypeAdapter(functools.reduce(operator.or_, plain)).validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise InputError(f"Option {name!r} of {slug!r} is {value!r}: {said[0].lower()}{said[1:]}.") from None


def _is_plain(kind: Any) -> bool:
    """Whether plain data can be of a type."""
    from pydantic import PydanticSchemaGenerationError, TypeAdapter

    try:
        TypeAdapter(kind)
    except PydanticSchemaGenerationError:
        return False
    return True
