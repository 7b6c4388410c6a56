"""Every format that export writes is read again, by the name of its folder and by that of its file."""

from pathlib import Path

import pytest
import torch

from distill.app.export import export
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.published.writers import EXPORTS
from tests.unit.test_published import CLASSES, REAL, smooth, taken

FILES = {
    "dc": "res_DM_toy_ConvNet_2ipc.pt",
    "mtt": "images_best.pt",
    "npz": "distilled.npz",
    "hf": "data-00000-of-00001.arrow",
    "imagefolder": "above/0000.png",
}


@pytest.mark.parametrize(
    "form", [form for form in EXPORTS if form not in ("hub", "set")]
)  # which have our own file: tests/unit/test_hub.py, tests/recipes/test_whole_set.py
def test_what_export_writes_is_read_again(form: str, tmp_path: Path) -> None:
    if form == "hf":
        pytest.importorskip("datasets")
    made = DistilledSet.of(REAL, smooth(4), CLASSES, method="dm")
    export(made, tmp_path, form, tmp_path / "out")
    assert (tmp_path / "out" / FILES[form]).is_file()
    for path in (tmp_path / "out", tmp_path / "out" / FILES[form]):
        if path.suffix == ".png":
            with pytest.raises(InputError, match=r"0000\.png is a picture, and .*: give that"):
                taken(path)
            continue
        found, said = taken(path)
        assert (found.images - made.images).abs().max() < (0.5 / 255 + 1e-6 if form == "imagefolder" else 1e-6)
        assert torch.equal(found.labels, made.labels)
        assert (found.classes, found.dataset) == (made.classes, "toy")
        assert not [line for line in said if line.startswith("warning")]
