"""What a device shows of itself."""
