"""From results to a page, on the workstation."""
