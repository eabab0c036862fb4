"""A model's trees compiled for single rows, used only where that changes nothing.

scikit-learn spends far more on preparing a call than on walking the trees, so that one row costs
as much as a hundred. Training compiles the fitted estimator and compares both forms on real rows
and on rows made to tell them apart; the contract says what was found. What cannot be compiled, or
differs, is answered by the original estimator.

``comparison`` compiles and compares, ``form`` loads what was compiled, ``masks`` and ``forest``
compute with it, and ``scorer`` answers by the form that serves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tallystick.errors import TallystickError

Floats = np.ndarray[Any, np.dtype[np.float64]]


class UnfitError(TallystickError):
    """Why the original has to serve, in half a sentence."""


def first_line(error: Exception) -> str:
    """What an error says, short enough for a sentence of ours."""
    return str(error).partition("\n")[0][:200] or type(error).__name__
