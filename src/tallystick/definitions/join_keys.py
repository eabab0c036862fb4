"""The values of join keys: their types, and the one form in which stores compare them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tallystick.clock import SECOND_US, to_us
from tallystick.definitions.exact_cast import are_exact, exact_value
from tallystick.definitions.feature_types import feature_type, type_problems
from tallystick.definitions.feature_view import Column
from tallystick.errors import DefinitionError, InputError, Problem

_REFUSED: Final = object()


def require_key_types(join_keys: Sequence[Column]) -> None:
    """Refuse keys of a type that cannot be a key.

    Raises:
        DefinitionError: With each such key.
    """
    problems = type_problems("entity key", {key.name: key.dtype for key in join_keys})
    if problems:
        raise DefinitionError("A view has keys that no online store can use.", problems)


def key_columns(
    join_keys: Sequence[Column], columns: Sequence[Sequence[Any]]
) -> list[Sequence[Any]]:
    """Columns of key values, exactly of their types; times as whole seconds, None for None.

    Args:
        join_keys: The keys, of types that :func:`require_key_types` allows.
        columns: Values of each key.

    Raises:
        InputError: A value has another type than its key; every such column is listed.
    """
    taken: list[Sequence[Any]] = []
    problems = []
    for key, values in zip(join_keys, columns, strict=True):
        column = _column(key, values)
        if isinstance(column, Problem):
            problems.append(column)
        else:
            taken.append(column)
    if problems:
        raise InputError("Entity keys have the wrong type.", problems)
    return taken


def _column(key: Column, values: Sequence[Any]) -> Sequence[Any] | Problem:
    own = feature_type(key.dtype)
    if are_exact(values, own):
        return values
    cast = exact_value(key.dtype)
    taken: list[Any] = []
    for row, value in enumerate(values):
        try:
            exact = None if value is None else cast(value)
        except (TypeError, ValueError, OverflowError):
            exact = _REFUSED
        # A float or a truth value may be exact as an integer, and yet it is not a key.
        if exact is _REFUSED or isinstance(value, bool | float):
            return Problem(f"{key.name}, row {row}", key.dtype, repr(value))
        taken.append(to_us(exact) // SECOND_US if own.is_time and exact is not None else exact)
    return taken
