"""Prune, export, benchmark and report audio transformers for edge devices."""
