"""The scorer of a model: probabilities by its compiled form, or by its original estimator."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np

from tallystick.definitions.contract import CompiledSpec, ModelContract
from tallystick.model_bundle.compiled import CompiledFormError, Floats
from tallystick.model_bundle.compiled.form import CompiledForm
from tallystick.model_bundle.compiled.form_comparison import (
    PROBES_LOADING,
    difference,
    original,
    probe_rows,
)

Form = Literal["compiled", "original"]

logger = logging.getLogger(__name__)


class Scorer:
    """Gives probabilities.

    Args:
        contract: The model's contract.
        estimator: Its fitted estimator.
        compiled: Its compiled form, if the bundle has one.
    """

    def __init__(self, contract: ModelContract, estimator: Any, compiled: bytes | None) -> None:
        self._estimator = estimator
        self._threshold = contract.threshold
        self._compiled: CompiledForm | None = None
        self._tolerance = 0.0
        if contract.compiled is None or compiled is None:
            return
        try:
            self._compiled = _usable(contract, contract.compiled, estimator, compiled)
            self._tolerance = contract.compiled.tolerance
        except CompiledFormError as error:
            logger.warning(
                "Model %s: its original estimator answers, more slowly; its compiled form is not "
                "used: %s.",
                contract.model,
                error,
            )

    @property
    def form(self) -> Form:
        """Which form answers."""
        return "original" if self._compiled is None else "compiled"

    def predict(self, matrix: Any) -> Floats:
        """Probability of 1 in each row, of shape (rows,).

        The answer for a row does not depend on the other rows. A row that is as close to the
        threshold as the forms may differ goes to the original estimator, so that no decision
        depends on the form. So does a batch with a number that the original may refuse.

        Args:
            matrix: What the estimator takes: float64 of shape (rows, features), or a DataFrame.
        """
        form = self._compiled
        if form is None or (form.accepts != "any" and not form.accepted(matrix).all()):
            return original(self._estimator, matrix)
        found = form.predict(matrix)
        close = np.abs(found - self._threshold) <= self._tolerance
        if close.any():
            found[close] = original(self._estimator, matrix[close])
        return found


def _usable(
    contract: ModelContract, spec: CompiledSpec, estimator: Any, data: bytes
) -> CompiledForm:
    """The form, after comparing it again: other releases and another processor may compute here.

    Raises:
        CompiledFormError: It cannot be used.
    """
    form = CompiledForm.load(spec, data)
    if form.features != len(contract.features):
        raise CompiledFormError(f"it takes {form.features} features, not {len(contract.features)}")
    difference(
        form,
        estimator,
        probe_rows(form, PROBES_LOADING),
        threshold=contract.threshold,
        tolerance=spec.tolerance,
    )
    return form
