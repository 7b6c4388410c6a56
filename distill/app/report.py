"""`bash run.sh report [RUN ...]`: one HTML file of a run, of several, or of a frontier; and the end of every run."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from distill.app.flags import parse
from distill.app.start import RunOptions
from distill.errors import InputError
from distill.evaluation.row_files import FILE
from distill.evaluation.rows import Row
from distill.reports.group_page import frontier_page, group_page
from distill.reports.outcome import show, write_tables
from distill.reports.page import Page, render
from distill.reports.run_page import run_page
from distill.reports.tracking import Tracker, check_tracker, send
from distill.runs.files import write_text
from distill.runs.memory import record_peak_memory

__all__ = ["NAME", "ReportCommand", "finish", "run_report", "show_and_send", "write_group_report"]

NAME = "report.html"
"""of the file in the folder of a run"""
NOT_CELLS = ("evaluate", "frontier", "stages", "benchmark")
"""folders of --runs that have no runs of the benchmark"""


@dataclass(frozen=True)
class ReportCommand:
    """Write one HTML file of a run, of several runs, or of a frontier."""

    places: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders of runs, or of a frontier; none: all finished runs below --runs"""
    benchmark: bool = False
    """all runs of methods below --runs"""
    frontier: bool = False
    """the last frontier below --runs"""
    out: Path | None = None
    """file to write; default: report.html in the folder, for several in --runs"""
    runs: Path = RunOptions.runs
    """folder of all runs"""
    track: Tracker = "none"
    """experiment tracker that gets the run too, for one run"""


def run_report(flags: list[str]) -> int:
    """Write the file and print its path.

    Returns:
        the exit code.

    Raises:
        InputError: nothing is finished, or a file is damaged.
    """
    command = parse(ReportCommand, ReportCommand(), flags, "bash run.sh report")
    if sum([bool(command.places), command.benchmark, command.frontier]) > 1:
        raise InputError("report takes folders, or --benchmark, or --frontier; give one of them")
    if command.track != "none" and not (len(command.places) == 1 and (command.places[0] / FILE).exists()):
        raise InputError(f"--track {command.track} takes the folder of one finished run: report RUN --track ...")
    check_tracker(command.track)
    page, folder = _page(command)
    path = command.out or folder / NAME
    write_text(path, render(page))
    print(path)
    send(folder, command.track)
    return 0


def _page(command: ReportCommand) -> tuple[Page, Path]:
    """Return the page, and the folder that it belongs to."""
    if command.frontier:
        found = sorted((command.runs / "frontier").glob("*/frontier.csv"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise InputError(f"there is no frontier below {command.runs}; `bash run.sh frontier DATASET` makes one")
        return frontier_page(found[-1].parent), found[-1].parent
    if command.benchmark:
        folders = [path for path in sorted(command.runs.glob("*")) if path.is_dir() and path.name not in NOT_CELLS]
        if not folders:
            raise InputError(f"there is no run below {command.runs}; `bash run.sh benchmark` makes them")
        return group_page(folders, "The benchmark"), command.runs / "benchmark"
    places = list(command.places) or [command.runs]
    if len(places) == 1 and (places[0] / FILE).exists():
        return run_page(places[0]), places[0]
    if len(places) == 1 and (places[0] / "frontier.csv").exists():
        return frontier_page(places[0]), places[0]
    # not in the first of several runs, which has a page of its own
    return group_page(places, "Runs side by side"), places[0] if len(places) == 1 else command.runs


def write_group_report(folders: Sequence[Path], title: str, path: Path) -> None:
    """Write the page of several finished runs."""
    write_text(path, render(group_page(folders, title)))


def finish(rows: list[Row], folder: Path, tracker: Tracker) -> int:
    """Write the tables and the report of a run, print the run, and send it to a tracker.

    The tables are first: table.csv says that the run is finished, and a report can be made again.

    Returns:
        the exit code.
    """
    write_tables(rows, folder)
    record_peak_memory(folder)
    try:
        write_text(folder / NAME, render(run_page(folder)))
    except InputError as error:
        print(f"warning: no report: {error}", file=sys.stderr)
    return show_and_send(folder, tracker)


def show_and_send(folder: Path, tracker: Tracker) -> int:
    """Print a finished run and send it to a tracker.

    Returns:
        the exit code.
    """
    show(folder)
    send(folder, tracker)
    return 0
