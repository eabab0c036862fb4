"""What should have been served: expected values of logged requests, in the form of the log.

Stored features are those of the fold under the knowledge clock, by the contract's definitions.
On-demand features are computed from the inputs that the log has, by the contract's frozen
functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystick.bundle import load_transforms
from tallystick.contract import ModelContract, ViewUse
from tallystick.dtypes import JSON_TEXT, arrow_type, json_text
from tallystick.fold import VisibilityClock
from tallystick.logged_labels import logged_as
from tallystick.retrieval import REQUEST_TIME, computed_values, stored_values

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.repo import Repo


def fold_clock(use: ViewUse) -> VisibilityClock:
    """The clock of a view's expected values: event where nothing says what was known when."""
    return VisibilityClock.KNOWLEDGE if use.spec.created_column else VisibilityClock.EVENT


def expected_values(
    repo: Repo, contract: ModelContract, use: ViewUse, log: pa.Table
) -> dict[str, pa.ChunkedArray]:
    """The values of a view that should have been served.

    Args:
        repo: Where the view's source is.
        contract: Under which the requests were logged.
        use: One of its views.
        log: Logged requests, with their entity keys and times.

    Returns:
        ``view__feature`` → one value per request, as the log would hold it.

    Raises:
        DataError: The source is not as declared.
    """
    import pyarrow as pa

    spine = pa.table(
        {
            REQUEST_TIME: log[REQUEST_TIME],
            **{key.name: log[f"entity.{key.name}"] for key in contract.entity_keys},
        }
    )
    folded = stored_values(repo, [use], spine, clock=fold_clock(use))
    types = contract.stored_columns
    return {
        name: _as_logged(folded[name], types[name])
        for name in (f"{use.name}__{column}" for column in use.columns)
    }


def expected_outputs(
    repo: Repo, contract: ModelContract, log: pa.Table
) -> dict[str, pa.ChunkedArray]:
    """The on-demand features that the contract's frozen functions give for logged inputs.

    Args:
        repo: Where the contract's bundle is.
        contract: Under which the requests were logged.
        log: Logged requests, with the inputs.

    Returns:
        ``view__feature`` → one value per request, for every on-demand view.

    Raises:
        StateError: The bundle is not there.
        DamagedError: It is not what was written.
        DefinitionError: A function fails.
    """
    import pyarrow as pa

    transforms = load_transforms(repo.state_dir, contract.model, contract.contract_hash)
    sources = sorted({source for spec in contract.transforms for source in spec.inputs.values()})
    given = pa.table(
        {
            name: _as_given(log[logged_as(contract, name)], contract.stored_columns.get(name))
            for name in sources
        }
    )
    computed = computed_values(contract, transforms, given)
    return {
        name: computed[name]
        for name in (
            f"{spec.name}__{out.name}" for spec in contract.transforms for out in spec.outputs
        )
    }


def _as_logged(column: pa.ChunkedArray, dtype: str) -> pa.ChunkedArray:
    """A column of history in the form in which the log holds its type."""
    import pyarrow as pa

    if dtype in JSON_TEXT:
        texts = [json_text(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, type=pa.string())])
    return column.cast(arrow_type(dtype))


def _as_given(column: pa.ChunkedArray, dtype: str | None) -> pa.ChunkedArray:
    """A column of the log in the form in which on-demand functions take its type."""
    import orjson
    import pyarrow as pa

    if dtype not in JSON_TEXT or dtype == "JSON":
        return column
    values = [None if text is None else orjson.loads(text) for text in column.to_pylist()]
    return pa.chunked_array([pa.array(values)])
