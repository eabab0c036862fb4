"""Instances of a request against the contract: one checker per contract, made when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tallystick.definitions.contract import ModelInputs
from tallystick_serving.error_responses import ProblemList, shown
from tallystick_serving.request_values import field_reader


class InstanceChecker:
    """Turns instances into columns of the declared types.

    Args:
        inputs: What the model takes.

    Raises:
        ContractError: The model takes a type that a request cannot carry.
    """

    def __init__(self, inputs: ModelInputs) -> None:
        columns = inputs.request_columns
        keys = {key.name for key in inputs.entity_keys}
        self._readers = {column.name: field_reader(column) for column in columns}
        self._names = self._readers.keys()
        self._nullable = frozenset(keys)
        self._what = f"The instances do not fit model {inputs.model!r}."

    def columns(self, instances: Sequence[Any]) -> dict[str, list[Any]]:
        """Check instances; a null entity key is allowed, and has no row in any view.

        Returns:
            Entity key or request field → its value in each instance.

        Raises:
            RequestError: Some do not fit; mismatches of all instances are listed together.
        """
        problems = ProblemList()
        for row, instance in enumerate(instances):
            if type(instance) is not dict:
                problems.add(f"instances[{row}]", "an object", shown(instance))
            elif instance.keys() != self._names:
                self._compare_names(row, instance, problems)
        columns = {name: self._column(name, instances, problems) for name in self._readers}
        problems.raise_if_any(self._what)
        return columns

    def _column(self, name: str, instances: Sequence[Any], problems: ProblemList) -> list[Any]:
        reader = self._readers[name]
        nullable = name in self._nullable
        if not problems.count:  # then each instance is an object with this name
            values = [instance[name] for instance in instances]
            if reader.are_exact(values):
                return values
        values = []
        for row, instance in enumerate(instances):
            if type(instance) is not dict or name not in instance:
                continue
            value = instance[name]
            if value is None and nullable:
                values.append(None)
                continue
            try:
                values.append(reader.read(value))
            except ValueError:
                expected = f"{reader.expected}, or null" if nullable else reader.expected
                problems.add(f"instances[{row}].{name}", expected, shown(value))
        return values

    def _compare_names(self, row: int, instance: dict[str, Any], problems: ProblemList) -> None:
        for name in self._names - instance.keys():
            problems.add(f"instances[{row}].{name}", self._readers[name].expected, "nothing")
        for name in instance.keys() - self._names:
            problems.add(
                f"instances[{row}].{name[:80]}",
                f"only {', '.join(self._names)}",
                shown(instance[name]),
            )
