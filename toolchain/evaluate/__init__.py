"""Accuracy and word errors of a checkpoint or an artifact."""
