"""`bash run.sh compare A B`: two finished runs on the same test images, image by image."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from distill.errors import InputError
from distill.flags import parse
from distill.reports.intervals import paired
from distill.reports.outcome import bools_of
from distill.reports.tables import aligned, find_rows

__all__ = ["run_compare"]


@dataclass(frozen=True)
class CompareCommand:
    """Compare two finished runs on the same test images: accuracy of the second minus that of the first."""

    first: tyro.conf.Positional[Path]
    """folder of a run"""
    second: tyro.conf.Positional[Path]
    """folder of another"""


def run_compare(flags: list[str]) -> int:
    """Print the differences.

    Returns:
        the exit code.

    Raises:
        InputError: two folders are not given, are no single runs, or were judged on other images.
    """
    if len([flag for flag in flags if not flag.startswith("-")]) != 2 and not {"-h", "--help"} & {*flags}:
        raise InputError("compare takes the folders of two runs: bash run.sh compare RUN RUN")
    asked = parse(CompareCommand, CompareCommand(Path(), Path()), flags, "bash run.sh compare")
    places = (asked.first, asked.second)
    for place in places:
        if not (place / "results.jsonl").exists():
            raise InputError(f"{place} is no folder of a finished run: it has no results.jsonl")
    rows = [find_rows([place]) for place in places]
    bools = [bools_of(place, found) for place, found in zip(places, rows, strict=True)]
    tests = [(found[0]["dataset"], found[0]["images"]) for found in rows]
    if tests[0] != tests[1]:
        (data, n), (other, m) = tests
        raise InputError(f"the runs were judged on other images: {n} of {data}, {m} of {other}")
    shared = [name for name in bools[0] if name in bools[1] and bools[0][name].ndim == bools[1][name].ndim == 2]
    lines = [["", *map(str, places), "difference", "95 % interval", "p"]]
    for name in shared:
        a, b = (found[name] for found in bools)
        result = paired(b, a)
        means = [f"{100 * x.double().mean().item():.1f}" for x in (a, b)]
        interval = f"{result.low:+.1f} to {result.high:+.1f}"
        lines.append([name, *means, f"{result.difference:+.1f}", interval, f"{result.p_value:.3g}"])
    print(aligned(lines), end="")
    print(
        f"accuracy in percent on {tests[0][1]} images of {tests[0][0]}, {len(bools[0]['clean'])} and "
        f"{len(bools[1]['clean'])} students; difference: second minus first; interval: bootstrap over both; "
        "p: exact or by permutation of images, two-sided, not corrected for the number of columns"
    )
    return 0
