"""The command line: the only room that looks into all others."""
