"""Injects each cause of skew by really doing it, and measures whether the audit names it."""
