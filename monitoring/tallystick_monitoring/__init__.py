"""Compares what was served with what should have been: parity, drift, performance, freshness."""
