"""Methods: `method.py` defines `Method`; every other module exports METHODS, a tuple of `Method` records."""
