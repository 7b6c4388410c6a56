"""Sets of other code: formats, colour spaces, labels; reading without unpickling."""
