"""What travels to a device."""
