"""Read published sets, also with the soft labels of a teacher, on which students train with SRe2L's settings."""

from collections.abc import Callable
from pathlib import Path

from distill.app.start import RunOptions, real_data_at
from distill.data import DATASETS, ImageSet, check_dataset, fingerprint
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.fkd import with_labels
from distill.published.read import read
from distill.published.reading import Read, Reading, import_set
from sre2l.precision import Compute
from sre2l.validate import Validate

__all__ = ["imported", "read_published"]


def read_published(
    path: Path, reading: Reading, real: Callable[[int], ImageSet], folder: Path, notify: Callable[[str], None]
) -> DistilledSet:
    """Read a published set (`distill.published.reading.Read`), and the teacher's labels if `--fkd` names them."""
    distilled = read(path, reading, real, folder, notify)
    if reading.fkd is None:
        return distilled
    settings = MethodTraining(validate=dict(vars(Validate())), compute=dict(vars(Compute())))
    return with_labels(distilled, Path(reading.fkd), folder, notify, settings)


def imported(path: Path, reading: Reading, dataset: str | None, options: RunOptions, read: Read) -> Path:
    """Return the folder of a published set as a set of ours, reading it if needed.

    Args:
        path: of the published set.
        reading: the flags of --source and the like.
        dataset: value of --dataset; None where the flag is absent.
        options: folders of data and runs.
        read: the reader.

    Raises:
        InputError: the data set is not named, or the path is no published set.
    """
    if dataset is None:
        raise InputError(f"{path} does not name its data set: give --dataset, one of {', '.join(DATASETS)}")
    check_dataset(dataset)
    data = fingerprint(dataset, options.data_dir)

    def real(size: int) -> ImageSet:
        return real_data_at(dataset, options, size)[0][0]

    return import_set(path, reading, dataset, data, options.runs, real, read)
