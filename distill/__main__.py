"""`python -m distill`: the command line of `distill.app`."""

import gc
import os
import sys

if __name__ == "__main__":
    # Imported objects live as long as the process: no garbage is looked for among them (torch has a quarter of a
    # million), neither while they are imported, nor later, nor when Python ends: a quarter of the CPU time of `list`.
    gc.disable()
    try:
        from distill.app.main import main
        from distill.runs.ranks import exit_process
    except KeyboardInterrupt:  # two seconds, mostly torch
        print("\nrun.sh: interrupted before the work began", file=sys.stderr, flush=True)
        os._exit(130)  # torch, half imported, may not end by itself

    gc.freeze()
    gc.enable()
    exit_process(main(sys.argv[1:]))
