"""Curvature of a loss, and the paper's bounds."""
