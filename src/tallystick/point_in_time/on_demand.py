"""On-demand views: one way to compute them, for training, serving and the audit alike.

Feast runs them differently offline and online (other dtypes, other row counts). Here both halves
call :meth:`Transforms.compute`, on columns of plain Python values, and outputs are cast to their
declared types at once, so that what the model sees does not depend on which half computed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tallystick.clock import utc
from tallystick.definitions.columns import plain
from tallystick.definitions.contract import ModelInputs, TransformSpec
from tallystick.definitions.feature_types import INTEGER_LIMITS
from tallystick.errors import DamagedError, DefinitionError

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo

Columns = dict[str, list[Any]]


class Transforms:
    """The on-demand functions of a model, frozen with its contract.

    Args:
        functions: On-demand view → its function.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._functions = dict(functions)

    @classmethod
    def from_repo(cls, repo: Repo, inputs: ModelInputs) -> Transforms:
        """Take the functions as they were applied."""
        return cls(
            {
                spec.name: repo.on_demand_view(spec.name).feature_transformation.udf
                for spec in inputs.transforms
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Transforms:
        """Load functions that :meth:`to_bytes` froze.

        Only for bytes whose checksum was verified: loading runs code.

        Raises:
            DamagedError: The bytes are not such functions.
        """
        import dill

        try:
            functions = dill.loads(data)  # noqa: S301 the caller has verified the checksum
        except Exception as error:
            # Unpickling raises whatever the bytes lead to.
            raise DamagedError(f"The frozen on-demand functions cannot be loaded: {error}") from (
                error
            )
        return cls(functions)

    def to_bytes(self) -> bytes:
        """Freeze the functions, with what they refer to."""
        import dill

        return bytes(dill.dumps(self._functions, recurse=True))

    def compute(self, inputs: ModelInputs, columns: Mapping[str, Sequence[Any]]) -> Columns:
        """Compute every on-demand feature.

        Args:
            inputs: What the model takes.
            columns: Stored features (``view__feature``) and request fields, one value per row each;
                null is None.

        Returns:
            ``view__feature`` → values of the declared type, one per row.

        Raises:
            DefinitionError: A function fails, or returns something else than it declared.
        """
        computed: Columns = {}
        for spec in inputs.transforms:
            given = {name: plain(columns[source]) for name, source in spec.inputs.items()}
            rows = len(next(iter(given.values()), ()))
            returned = self._call(spec, given, rows)
            for output in spec.outputs:
                values = returned.get(output.name)
                if values is None or len(values) != rows:
                    got = "nothing" if values is None else f"{len(values)} values"
                    raise DefinitionError(
                        f"On-demand view {spec.name!r} must return {rows} values of "
                        f"{output.name!r}, but returned {got}."
                    )
                try:
                    computed[f"{spec.name}__{output.name}"] = cast_values(values, output.dtype)
                except (TypeError, ValueError, OverflowError) as error:
                    raise DefinitionError(
                        f"On-demand view {spec.name!r} returned a value of {output.name!r} that "
                        f"is no {output.dtype}: {error}"
                    ) from error
        return computed

    def _call(
        self, spec: TransformSpec, given: Mapping[str, Sequence[Any]], rows: int
    ) -> Mapping[str, Sequence[Any]]:
        function = self._functions[spec.name]
        try:
            if spec.mode == "python":
                return dict(function({name: list(values) for name, values in given.items()}))
            if spec.mode == "python_singleton":
                results = [
                    function({name: values[row] for name, values in given.items()})
                    for row in range(rows)
                ]
                return {
                    output.name: [result[output.name] for result in results]
                    for output in spec.outputs
                }
            return _call_pandas(function, given)
        except Exception as error:
            # Any exception: the function is the user's code.
            raise DefinitionError(
                f"On-demand view {spec.name!r} failed: {type(error).__name__}: {error}"
            ) from error


def _call_pandas(
    function: Callable[..., Any], given: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """Call a pandas function; a NaN it returns is null, since pandas cannot tell them apart."""
    import pandas as pd

    returned = function(pd.DataFrame({name: list(values) for name, values in given.items()}))
    return {
        str(name): [None if pd.isna(value) else value for value in column.tolist()]
        for name, column in returned.items()
    }


def cast_values(values: Sequence[Any], dtype: str) -> list[Any]:
    """Cast plain values to a Feast value type, exactly or not at all; None stays None.

    >>> cast_values([1, None, 2.5], "DOUBLE")
    [1.0, None, 2.5]
    >>> cast_values([0.1], "FLOAT")
    [0.10000000149011612]

    Raises:
        TypeError: A value is of another kind.
        ValueError: A number has a fraction where an integer is declared.
        OverflowError: An integer is out of range.
    """
    cast = _CASTS.get(dtype)
    if cast is None or {*map(type, values)} <= _AS_THEY_ARE.get(dtype, _NOTHING):
        return list(values)
    if dtype in INTEGER_LIMITS and {*map(type, values)} == {int}:
        low, high = INTEGER_LIMITS[dtype]
        if low <= min(values) and max(values) <= high:
            return list(values)
    return [None if value is None else cast(value) for value in values]


def _to_float(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _to_float32(value: Any) -> float:
    import numpy as np

    return float(np.float32(_to_float(value)))


def _to_bool(value: Any) -> bool:
    if value not in (0, 1):
        raise TypeError(f"{value!r} is neither true nor false")
    return bool(value)


def _to_moment(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is no datetime")
    return utc(value)


def _to_integer(value: Any, dtype: str) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value!r} has a fraction" if math.isfinite(value) else f"{value!r}")
    number = int(value)
    if number != value:  # also a float32 or a decimal with a fraction, and text
        raise ValueError(f"{value!r} is no whole number")
    low, high = INTEGER_LIMITS[dtype]
    if not low <= number <= high:
        raise OverflowError(f"{number} is out of range")
    return number


def _to_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


_NOTHING: frozenset[type] = frozenset()
_AS_THEY_ARE = {
    "DOUBLE": frozenset({float, type(None)}),
    "STRING": frozenset({str, type(None)}),
    "BOOL": frozenset({bool, type(None)}),
}
"""Types whose values need no cast."""

_CASTS: dict[str, Callable[[Any], Any]] = {
    "DOUBLE": _to_float,
    "FLOAT": _to_float32,
    "INT32": lambda value: _to_integer(value, "INT32"),
    "INT64": lambda value: _to_integer(value, "INT64"),
    "BOOL": _to_bool,
    "STRING": _to_text,
    "UNIX_TIMESTAMP": _to_moment,
}
