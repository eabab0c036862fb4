"""Tallystick: a feature store in which training and serving match, and which proves it.

The public API: what an engineer declares beside Feast definitions, and the errors. Names are
imported from their modules on first use, so that ``import tallystick`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallystick.definitions.model import Gate, Label, Model, Retraining
    from tallystick.errors import (
        ContractError,
        DamagedError,
        DataError,
        DefinitionError,
        InputError,
        MissingExtraError,
        StateError,
        TallystickError,
        UnavailableError,
    )

__version__ = "0.1.0"

__all__ = [
    "ContractError",
    "DamagedError",
    "DataError",
    "DefinitionError",
    "Gate",
    "InputError",
    "Label",
    "MissingExtraError",
    "Model",
    "Retraining",
    "StateError",
    "TallystickError",
    "UnavailableError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tallystick.errors" if name.endswith("Error") else "tallystick.definitions.model"
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return __all__
