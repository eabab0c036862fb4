"""The compiled form of a model, independent of how it computes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from tallystick.definitions.contract import Accepts, CompiledSpec, InputType
from tallystick.model_bundle.compiled import Floats
from tallystick.model_bundle.compiled.forest import Forest
from tallystick.model_bundle.compiled.leaf_masks import LeafMasks

FLOAT32_LIMIT = float(2**128 - 2**103)
"""The smallest number that float32 rounds to infinity."""


Trees: TypeAlias = LeafMasks | Forest
"""An ensemble of trees that can predict."""


class CompiledForm:
    """Compiled trees that stand for an estimator.

    Args:
        trees: The trees.
        input_type: Type to which the estimator rounds its inputs.
        accepts: Numbers that the estimator takes.
    """

    def __init__(self, trees: Trees, *, input_type: InputType, accepts: Accepts) -> None:
        self.trees = trees
        self.features = trees.features
        self.accepts = accepts
        self._rounds = input_type == "float32"

    @classmethod
    def load(cls, spec: CompiledSpec, data: bytes) -> CompiledForm:
        """Load the form that training compiled.

        Raises:
            CompiledFormError: The library is missing, of another series, or cannot read it.
        """
        trees: Trees = LeafMasks.from_bytes(data) if spec.library == "numpy" else Forest(data)
        return cls(trees, input_type=spec.input_type, accepts=spec.accepts)

    def accepted(self, matrix: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether the estimator takes each row, rather than refuse it."""
        if self.accepts == "any":
            return np.ones(len(matrix), dtype=np.bool_)
        within = np.abs(matrix) < (FLOAT32_LIMIT if self._rounds else np.inf)
        if self.accepts == "nan":
            within |= np.isnan(matrix)
        return np.asarray(within.all(axis=1))

    def predict(self, matrix: Floats) -> Floats:
        """Probability of 1 in each row, of shape (rows,).

        Args:
            matrix: Float64 of shape (rows, features), of rows that are accepted.
        """
        if matrix.shape[1] != self.features:
            raise ValueError(
                f"The compiled form takes {self.features} features, not {matrix.shape[1]}."
            )
        if self._rounds:
            matrix = matrix.astype(np.float32).astype(np.float64)
        return self.trees.predict(matrix)
