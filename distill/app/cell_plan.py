"""A cell of a table as a run: its command line, its state, and, where needed, the second evaluation of its set.

If a recipe trains with another network than the students of the table, the distilled set is evaluated a second time,
by `bash run.sh evaluate` with the network of the table.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from distill.app.cells import SET, Cell
from distill.app.distil import resolve_flags
from distill.app.evaluate import Judgement, folder_of
from distill.app.flags import flags_of
from distill.app.registry import packages_in
from distill.app.start import RunOptions, identity_of, real_data
from distill.data import label
from distill.distilled import digest_of
from distill.errors import InputError, unknown
from distill.experiment import Experiment
from distill.methods.method import Method
from distill.reports.comparison import FULL
from distill.reports.outcome import missing_columns
from distill.runs.run import Run

__all__ = [
    "DataOf",
    "data_key",
    "data_of",
    "listed",
    "network_of_full",
    "part_of",
    "planned_cell",
    "selected_names",
    "texts_by_method",
    "words_of",
]

T = TypeVar("T")
DataOf = Callable[[str, Path, int | None, str, float], tuple[dict[str, Any], tuple[int, int]] | None]
"""`data_of`, or the same with a cache"""


def planned_cell(
    experiment: Experiment,
    options: RunOptions,
    words: Sequence[str],
    *,
    name: str,
    network: str,
    data: DataOf,
    set_from: Path | None = None,
) -> Cell:
    """Return the cell of a run; `trouble` is set if another run is in the folder.

    Args:
        experiment: of the run.
        options: of the run.
        words: command line of the run, without the program: METHOD DATASET [--flags].
        name: of the cell, and of its log file.
        network: of the students of the table; "recipe" for the network with which the run distils.
        data: `data_of`, cached.
        set_from: folder of a run with the same distilled set, which this run takes over.
    """
    folder = options.runs / experiment.folder(options.data_dir)
    trouble = ""
    where = data_key(experiment, options)
    known = data(*where) if (folder / "experiment.json").exists() else None
    try:
        Run(folder, experiment, data=known and known[0], seed=experiment.seed)
    except InputError as error:  # the folder has a run with another config or on other data
        trouble = str(error)

    @cache  # a finished set does not change, and its hash is needed after every cell
    def digest() -> str:
        return digest_of(folder / SET)

    def complete(finished: Path) -> bool:
        if not (finished / "table.csv").exists() or not of_this_configuration(finished):
            return False
        known = data(*where)
        return known is None or missing_columns(finished, experiment.evaluation, *known[1]) == []

    def of_this_configuration(finished: Path) -> bool:
        if finished == folder:
            return True  # a run with another config has set `trouble`
        recipe = "quick" if experiment.recipe == "quick" else "paper"
        settings = Judgement(digest(), experiment.dataset, network, experiment.evaluation, recipe, experiment.seed)
        try:
            Run(finished, settings, seed=experiment.seed)
        except InputError:  # the set was evaluated with other settings; `evaluate` reports this
            return False
        return True

    shared = {"name": name, "words": tuple(words), "data": experiment.data_name(options.data_dir), "run": folder}
    shared |= {"complete": complete, "trouble": trouble, "set_from": set_from}
    same = network in ("recipe", experiment.config.backbone)
    other_data = experiment.split != "test" or experiment.blur > 0  # of which `evaluate` knows nothing
    if same or experiment.evaluation.protocol == "own" or other_data:
        return Cell(**shared, evaluation=None)

    def evaluation_folder() -> Path:
        data_name = label(experiment.dataset, options.data_dir)
        return options.runs / folder_of(experiment.method, digest(), data_name, experiment.seed, network)

    again = ["evaluate", str(folder), "--backbone", network, "--recipe", experiment.recipe]
    again += ["--seed", str(experiment.seed), *flags_of(experiment.evaluation)]
    again += ["--runs", str(options.runs), "--data-dir", str(options.data_dir)]
    if packages := set(packages_in([experiment.dataset, experiment.config.backbone]).values()):
        again += ["--packages", ",".join(sorted(packages))]
    return Cell(**shared, evaluation=evaluation_folder, evaluation_words=tuple(again))


def data_key(experiment: Experiment, options: RunOptions) -> tuple[str, Path, int | None, str, float]:
    """Return the arguments of `data_of` for the data of an experiment."""
    return experiment.dataset, options.data_dir, experiment.image_size, experiment.split, experiment.blur


def data_of(
    dataset: str, data_dir: Path, image_size: int | None, split: str, blur: float
) -> tuple[dict[str, Any], tuple[int, int]] | None:
    """Return the identity of a data set, and the channels and the size of its images.

    None if the data are missing: a finished run is then shown without comparing its data.
    """
    try:
        train, test = real_data(dataset, data_dir, image_size, split, blur=blur)
    except InputError:
        return None
    return identity_of(train, test), test.image_shape[:2]


def network_of_full(methods: Mapping[str, Method], dataset: str, recipe: str) -> str:
    """Return the network with which a recipe trains on the whole data set."""
    return resolve_flags(methods[FULL], dataset, ["--recipe", recipe])[0].config.backbone


def selected_names(text: str, kind: str, known: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Return the names of a comma-separated list, each once.

    Args:
        text: the list.
        kind: what the names are, for the error.
        known: all valid names.

    Raises:
        InputError: a name is unknown.
    """
    names = listed(text)
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)
    return names


def listed(text: str) -> list[str]:
    """Return the names of a comma-separated list, each once.

    >>> listed("dc, dm,,dc")
    ['dc', 'dm']
    """
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def texts_by_method(flag: str, texts: Sequence[str], methods: Mapping[str, object]) -> dict[str, str]:
    """Return method -> flags of the method, from texts "METHOD: flags".

    Args:
        flag: that takes the texts, for the error.
        texts: one for each method.
        methods: all methods, by name.

    Raises:
        InputError: a text has another form, its method is unknown, or a method has two texts.
    """
    found = {}
    for text in texts:
        method, colon, words = text.partition(":")
        if not colon:
            raise InputError(f'{flag} is {text!r}; it takes "METHOD: flags", one text per method')
        if method not in methods:
            raise unknown("method", method, methods)
        if method in found:
            raise InputError(f"{flag} names {method} twice; give all its flags in one text")
        found[method] = words.strip()
    return found


def words_of(flag: str, method: str, text: str, reserved: Sequence[str], command: str) -> list[str]:
    """Return the words of a text of flags.

    Args:
        flag: that takes the text, for the error.
        method: whose flags these are.
        text: as a shell would read it.
        reserved: flags that the command sets itself.
        command: name of the command, for the error.

    Raises:
        InputError: a quotation mark is not closed, or a word is a reserved flag.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{flag} is {text!r}: {error}") from None
    for word in words:
        if word.partition("=")[0] in reserved:
            raise InputError(f"{flag} has {word} for {method}; give it to the {command} itself")
    return words


def part_of(cells: Sequence[T], text: str) -> list[T]:
    """Return every N-th cell, or group of cells, starting at the I-th.

    Args:
        cells: all of them.
        text: I/N.

    Raises:
        InputError: the text is not I/N.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"--cell is {text}; it takes I/N, from 1/N to N/N: 1/8")
    return list(cells[int(number) - 1 :: int(count)])
