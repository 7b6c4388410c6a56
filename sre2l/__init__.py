"""SRe2L and RDED: squeeze, recover or select, relabel, validate; and GUARD on it."""
