"""Methods: each module exports `Config`, `RECIPES`, `work` and `distill(real, ipc, config, run) -> DistilledSet`.

RECIPES maps the name of a method to its presets, each a function (data set, ipc) -> `distill.experiment.Recipe`; one
module may hold several methods that differ in their config alone. The folder is the registry.

A module may have `check(real, ipc, config, processes)`, which refuses bad input before any work (an InputError), and
`lacks(path)`: whether a set that is there lacks what its students need beside it, and is distilled again.
"""
