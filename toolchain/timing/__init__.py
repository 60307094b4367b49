"""What a model takes on a device, in milliseconds: timed once, kept, and fitted."""
