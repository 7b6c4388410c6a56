"""Images and labels of nobody's code in particular: read as what they are, in any of the usual layouts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.errors import InputError
from distill.published.recognise import recognised_source
from tests.toy import toy
from tests.unit.test_published import CLASSES, REAL, drawn, nhwc, smooth, taken

X = smooth(4)


@pytest.mark.parametrize(
    "content",
    [
        (X, CLASSES),
        [X, CLASSES.float()],
        {"images": X, "labels": CLASSES[:, None]},
        {"image": X, "label": CLASSES, "epochs": 3},
        {"X": X, "y": CLASSES.byte()},
        {"data": X, "targets": F.one_hot(CLASSES)},
        (X.permute(0, 2, 3, 1), CLASSES),
        ((255 * X).round().byte(), CLASSES),
        ((255 * X).round(), CLASSES),
    ],
)
def test_pairs_and_dicts_are_tensors(content: object, tmp_path: Path) -> None:
    """They were taken for IDC's, or named and not read."""
    path = tmp_path / "my set.pt"
    torch.save(content, path)
    assert recognised_source(path) == recognised_source(tmp_path) == "tensors"
    for place in (path, tmp_path):
        found, said = taken(place)
        assert (found.images - X).abs().max() <= (0.5 / 255 + 1e-6 if "bytes" in said[0] else 0)
        assert (found.labels if found.labels.ndim == 1 else found.labels.argmax(1)).tolist() == CLASSES.tolist()
        assert (found.method, found.mean) == ("my_set", REAL.mean)
        assert said[0].startswith("tensors of images and labels")
        assert len(said) == 1


def test_an_npz_of_both_is_tensors_where_labels_are_classes(tmp_path: Path) -> None:
    for number, names in enumerate((("images", "labels"), ("image", "label"), ("x", "y"))):
        np.savez(tmp_path / f"{number}.npz", **dict(zip(names, (nhwc(X), CLASSES.numpy()), strict=True)))
        assert recognised_source(tmp_path / f"{number}.npz") == "tensors"
        assert torch.allclose(taken(tmp_path / f"{number}.npz")[0].images, X)
    with pytest.raises(InputError, match=r"several sets: give one file of 0\.npz, 1\.npz, 2\.npz"):
        recognised_source(tmp_path)


def test_grey_images_need_no_channel(tmp_path: Path) -> None:
    torch.save((X[:, 0], CLASSES), tmp_path / "a.pt")
    found, _ = taken(tmp_path / "a.pt", toy(channels=1))
    assert torch.equal(found.images, X[:, :1])


def test_values_that_are_no_pixels_are_asked_for(tmp_path: Path) -> None:
    torch.save((drawn(4, 3, 8, 8), CLASSES), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"values from -.* are no pixels in \[0, 1\]: give --space normalised"):
        taken(tmp_path / "a.pt")
    found, said = taken(tmp_path / "a.pt", space="normalised")
    assert torch.allclose(found.images, drawn(4, 3, 8, 8) * 0.25 + 0.4, atol=1e-6)
    assert "normalised with our constants of toy, 0.4" in said[0]
    assert torch.equal(taken(tmp_path / "a.pt", space="pixels")[0].images, drawn(4, 3, 8, 8))


def test_idc_is_taken_where_the_name_or_a_flag_says_so(tmp_path: Path) -> None:
    for name in ("data.pt", "other.pt"):
        torch.save([X, CLASSES], tmp_path / name)
    assert recognised_source(tmp_path / "data.pt") == "idc"
    with pytest.raises(InputError, match=r"--source tensors where it is not IDC's"):
        taken(tmp_path / "data.pt")
    assert torch.equal(taken(tmp_path / "data.pt", source="tensors")[0].images, X)
    assert torch.equal(taken(tmp_path / "other.pt")[0].images, X)
    for how in ({"factor": 2}, {"factor": 2, "source": "idc"}):
        assert len(taken(tmp_path / "other.pt", **how)[0].images) == 16
    for name in ("factor2_b.pt", "factor2/data.pt"):
        (tmp_path / "factor2").mkdir(exist_ok=True)
        torch.save([X, CLASSES], tmp_path / name)
        assert len(taken(tmp_path / name)[0].images) == (16 if "data" in name else 4)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            (drawn(4, 8, 6, 3), CLASSES),
            r"images of \(4, 8, 6, 3\); expected squares as \(N, C, H, H\) or \(N, H, H, C\)",
        ),
        ((X, CLASSES[:3]), r"4 images and labels of \(3,\)"),
        ((X, torch.zeros(4, 0)), r"labels of \(4, 0\)"),
        ((X[:0], CLASSES[:0]), "a.pt"),
        ((X, CLASSES[:, None, None]), r"labels of \(4, 1, 1\)"),
        ((X, CLASSES + 0.5), "no whole numbers"),
        ((X, CLASSES + 1), "labels from 1 to 2"),
        ((X, drawn(4, 2)), "no probabilities"),
        ({"images": X}, "it holds a dict of images"),
        ({"\x1b[31m" + 300 * "x": X}, r"it holds a dict of \\x1b\[31mx+ \.\.\."),
        ((X[:, :, :2, :2], CLASSES), "images of 2 pixels a side; a set has 4 to 1024"),
    ],
)
def test_pairs_that_fit_nothing_are_one_line(content: object, line: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=line) as error:
        taken(tmp_path / "a.pt")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_rows_last_of_official_codes_are_told_what_reads_them(tmp_path: Path) -> None:
    torch.save({"data": [[X.permute(0, 2, 3, 1), CLASSES]]}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"\(N, H, H, C\) is read with --source tensors"):
        taken(tmp_path / "a.pt")


def test_kip_with_channels_first(tmp_path: Path) -> None:
    """As RFAD's best.npz has them."""
    labels = np.eye(2)[CLASSES.numpy()] - 0.5
    np.savez(tmp_path / "best.npz", images=X.numpy(), labels=labels)
    np.savez(tmp_path / "rows.npz", images=nhwc(X), labels=labels)
    first, last = (taken(tmp_path / name, space="normalised")[0] for name in ("best.npz", "rows.npz"))
    assert torch.allclose(first.images, last.images)
    assert first.labels.tolist() == CLASSES.tolist()
    np.savez(tmp_path / "odd.npz", images=drawn(4, 8, 8, 8).numpy(), labels=labels)
    with pytest.raises(InputError, match=r"expected \(N, H, W, 1 or 3\) or \(N, 1 or 3, H, W\)"):
        taken(tmp_path / "odd.npz", space="normalised")
