"""Options of methods, given as plain data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

from pilotfish.errors import InputError

__all__ = ["read_option"]


def read_option(slug: str, name: str, value: Any, make: Callable[..., Any]) -> Any:
    """Read an option as its parameter is annotated; what is not plain data is taken as it is."""
    if not isinstance(value, bool | int | float | str | list | dict):
        return value
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    hint = get_type_hints(make)[name]
    try:
        return TypeAdapter(hint).validate_python(value)
    except PydanticSchemaGenerationError:
        raise InputError(
            f"Option {name!r} of {slug!r} is {value!r}: it takes a part, which only Python can give."
        ) from None
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise InputError(f"Option {name!r} of {slug!r} is {value!r}: {said[0].lower()}{said[1:]}.") from None
