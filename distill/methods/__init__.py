"""Methods: `method.py` is the contract; every other module exports METHODS, a tuple of its records."""
