"""`python -m distill`: the command line of `distill.app`."""

import sys

from distill.app.main import main
from distill.runs.ranks import leave

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
