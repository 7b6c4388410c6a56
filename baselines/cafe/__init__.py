"""CAFE."""
