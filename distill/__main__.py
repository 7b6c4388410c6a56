"""`python -m distill`: the command line of `distill.app`."""

import sys

from distill.app.main import main
from distill.runs.ranks import exit_process

if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
