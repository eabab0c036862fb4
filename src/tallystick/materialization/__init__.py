"""Materialization: brings history online."""
