"""Distilled sets of other code: formats, colour spaces, labels; reading without executing anything in a file."""
