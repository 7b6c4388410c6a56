"""SRe2L: squeeze, recover, relabel, validate; and GUARD on it."""
