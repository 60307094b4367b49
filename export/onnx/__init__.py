"""Operators: what every graph is made of."""
