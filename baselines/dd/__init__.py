"""DD and SLDD."""
