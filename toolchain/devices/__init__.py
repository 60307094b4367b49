"""A bundle, and the way to a device and back."""
