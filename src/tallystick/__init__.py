"""Tallystick: a feature store in which training and serving match, and which proves it.

What an engineer writes beside Feast definitions is exported here, lazily, so that
``import tallystick`` stays light for the command line and for serving.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallystick.definitions.model import Gate, Label, Model, Retraining
    from tallystick.errors import TallystickError

__version__ = "0.1.0"

__all__ = ["Gate", "Label", "Model", "Retraining", "TallystickError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name in {"Gate", "Label", "Model", "Retraining"}:
        from tallystick.definitions import model

        return getattr(model, name)
    if name == "TallystickError":
        from tallystick.errors import TallystickError

        return TallystickError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
