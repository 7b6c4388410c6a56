"""Robust features: the images that a robust network sees as the real ones, for any method."""
