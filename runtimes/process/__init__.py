"""How our processes start, speak and end."""
