"""The compiled form of a model's trees, which answers single rows faster than scikit-learn.

scikit-learn spends far more time on preparing a call than on walking the trees: one row costs as
much as a hundred. Training compiles the fitted estimator and compares both forms on real and on
made-up rows. The contract holds the result. A model that cannot be compiled, or whose forms differ,
is served by its original estimator.

``form_comparison`` compiles and compares, ``form`` loads a compiled form, ``leaf_masks`` and
``forest`` compute with it, and ``scorer`` chooses the form that answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tallystick.errors import TallystickError

Floats = np.ndarray[Any, np.dtype[np.float64]]


class CompiledFormError(TallystickError):
    """The compiled form cannot be made or used; the message is the reason, as half a sentence."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened for a sentence."""
    return str(error).partition("\n")[0][:200] or type(error).__name__
