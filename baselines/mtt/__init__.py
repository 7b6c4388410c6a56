"""MTT and TESLA."""
