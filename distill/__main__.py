"""`python -m distill`: the command line of `distill.app`."""

import gc
import sys

if __name__ == "__main__":
    # Imported objects live as long as the process: no garbage is looked for among them (torch has a quarter of a
    # million), neither while they are imported, nor later, nor when Python ends: a quarter of the CPU time of `list`.
    gc.disable()
    from distill.app.main import main
    from distill.runs.ranks import exit_process

    gc.freeze()
    gc.enable()
    exit_process(main(sys.argv[1:]))
