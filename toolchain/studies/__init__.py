"""Comparisons of methods; not installed."""
