"""On-demand views: one way to compute them, for training, serving and the audit alike.

Feast runs them differently offline and online (other dtypes, other row counts). Here both halves
call :meth:`Transforms.compute`, on columns of plain Python values, and outputs are cast to their
declared types at once, so that what the model sees does not depend on which half computed it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tallystick.definitions.columns import plain
from tallystick.definitions.contract import ModelInputs, TransformSpec
from tallystick.definitions.exact_cast import exact_values
from tallystick.definitions.feature_types import Kind, every_kind, feature_type
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
        names = [spec.name for spec in inputs.transforms]
        views = [repo.store.get_on_demand_feature_view(name) for name in names]
        return cls(
            {name: view.feature_transformation.udf for name, view in zip(names, views, strict=True)}
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
            # Unpickling can raise any error.
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
            columns: Stored features (``view__feature``) and request fields, one value per row each.
                Null is None.

        Returns:
            ``view__feature`` → values of the declared type, one per row.

        Raises:
            DefinitionError: A function fails, or does not return what it declared.
        """
        computed: Columns = {}
        input_types = inputs.value_columns | {
            column.name: column.dtype for column in inputs.request_columns
        }
        for spec in inputs.transforms:
            given = {name: plain(columns[source]) for name, source in spec.inputs.items()}
            rows = len(next(iter(given.values()), ()))
            types = {name: input_types[source] for name, source in spec.inputs.items()}
            returned = self._call(spec, given, types, rows)
            for output in spec.outputs:
                values = returned.get(output.name)
                if values is None or len(values) != rows:
                    got = "nothing" if values is None else f"{len(values)} values"
                    raise DefinitionError(
                        f"On-demand view {spec.name!r} must return {rows} values of "
                        f"{output.name!r}, but returned {got}."
                    )
                try:
                    computed[f"{spec.name}__{output.name}"] = exact_values(values, output.dtype)
                except (TypeError, ValueError, OverflowError) as error:
                    raise DefinitionError(
                        f"On-demand view {spec.name!r} returned a value of {output.name!r} that "
                        f"is not of type {output.dtype}: {error}"
                    ) from error
        return computed

    def _call(
        self,
        spec: TransformSpec,
        given: Mapping[str, Sequence[Any]],
        types: Mapping[str, str],
        rows: int,
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
            return _call_pandas(function, given, types)
        except Exception as error:
            # Any exception: the function is the user's code.
            raise DefinitionError(
                f"On-demand view {spec.name!r} failed: {type(error).__name__}: {error}"
            ) from error


_PANDAS: Final[Mapping[Kind, str]] = every_kind(
    {
        Kind.INTEGER: "Int64",
        Kind.FLOAT: "float64",
        Kind.BOOL: "boolean",
        Kind.TIME: "datetime64[us, UTC]",
    }
    | dict.fromkeys(
        (Kind.TEXT, Kind.UUID, Kind.DECIMAL, Kind.BYTES, Kind.LIST, Kind.SET, Kind.DOCUMENT),
        "object",
    )
)
"""Kind of values → pandas' type of a column of them, also where some or all of them are null."""


def _call_pandas(
    function: Callable[..., Any], given: Mapping[str, Sequence[Any]], types: Mapping[str, str]
) -> dict[str, list[Any]]:
    """Call a pandas function. A NaN in its answer is null, since pandas has one value for both."""
    import pandas as pd

    columns = {
        name: pd.Series(list(values), dtype=_PANDAS[feature_type(types[name]).kind])
        for name, values in given.items()
    }
    returned = function(pd.DataFrame(columns))
    return {
        str(name): [None if pd.isna(value) else value for value in column.tolist()]
        for name, column in returned.items()
    }
