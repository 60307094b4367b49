"""Recordings and waveforms."""
