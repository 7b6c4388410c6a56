"""Read published sets, also with the soft labels of a teacher, on which students train with SRe2L's settings."""

from collections.abc import Callable
from pathlib import Path

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.method_training import MethodTraining
from distill.published.fkd import with_labels
from distill.published.read import read
from distill.published.reading import Reading
from sre2l.precision import Compute
from sre2l.validate import Validate

__all__ = ["read_published"]


def read_published(
    path: Path, reading: Reading, real: Callable[[int], ImageSet], folder: Path, notify: Callable[[str], None]
) -> DistilledSet:
    """Read a published set (`distill.published.reading.Read`), and the teacher's labels if `--fkd` names them."""
    distilled = read(path, reading, real, folder, notify)
    if reading.fkd is None:
        return distilled
    settings = MethodTraining(validate=dict(vars(Validate())), compute=dict(vars(Compute())))
    return with_labels(distilled, Path(reading.fkd), folder, notify, settings)
