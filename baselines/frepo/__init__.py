"""FRePo."""
