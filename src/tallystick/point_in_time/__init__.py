"""The point-in-time rule, and the on-demand features computed on top of it."""
