"""What is asked of a set that has no use for it, and what a file says that is not so: one line each."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from distill.app.export import export
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.reading import Reading, import_set
from distill.published.recognise import recognised_source
from distill.published.unpickled import read_npz, read_pickle
from distill.training.whiten import Whiten, preprocessing
from tests.toy import toy
from tests.unit.test_published import CLASSES, REAL, drawn, read, save_dc, save_mtt, taken, write_pictures

FIELDS = {"dataset": "toy", "method": "dc", "classes": REAL.classes, "mean": REAL.mean, "std": REAL.std}
FIELDS |= {"augment": "", "backbone": "convnet", "training": {}}


def save_ours(path: Path, **arrays: np.ndarray) -> Path:
    whole = {"images": drawn(4, 3, 8, 8).numpy(), "labels": CLASSES.numpy()}
    np.savez(path, **whole | arrays, **{"guard-distilled-1": json.dumps(FIELDS)})
    return path


# --- flags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"lr": 0.1}, r"--lr 0\.1 is for sets of mtt; .*a\.pt is read as dc: leave it out"),
        ({"factor": 2}, "--factor 2 is for sets of idc"),
        ({"fkd": "x"}, "--fkd x is for sets of sre2l or imagefolder"),
        ({"parts": True}, "--parts is for sets of mtt"),
    ],
)
def test_flags_without_a_use_are_named(how: dict, line: str, tmp_path: Path) -> None:
    """They were ignored."""
    save_dc(tmp_path / "a.pt")
    with pytest.raises(InputError, match=line):
        taken(tmp_path / "a.pt", **how)


def test_an_experiment_is_of_dc(tmp_path: Path) -> None:
    save_mtt(tmp_path, drawn(4, 3, 8, 8))
    with pytest.raises(InputError, match=r"--experiment 1 is for sets of dc; .* is read as mtt"):
        taken(tmp_path, space="normalised", experiment=1)


@pytest.mark.parametrize("source", ["sre2l", "imagefolder", "ours"])
@pytest.mark.parametrize("space", ["normalised", "whitened"])
def test_pixels_by_format_are_nothing_else(source: str, space: str, tmp_path: Path) -> None:
    path = tmp_path / "set"
    if source == "ours":
        path = save_ours(tmp_path / "a.npz")
    else:
        write_pictures(path, ["new000", "new001"] if source == "sre2l" else ["above", "below"])
    assert recognised_source(path) == source
    with pytest.raises(InputError, match=f"--space is {space}, but "):
        taken(path, space=space)
    assert len(taken(path, space="pixels")[0].images) == 4


# --- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (CLASSES.numpy() + 0.5, "labels are no whole numbers"),
        (np.zeros((0,), "i8"), r"4 images and labels of \(0,\)"),
        (np.zeros((4, 1, 1), "i8"), r"labels of \(4, 1, 1\)"),
        (np.zeros((3,), "i8"), r"labels of \(3,\)"),
        (CLASSES.numpy() + 1, "labels from 1 to 2, it names 2 classes"),
        (CLASSES.numpy() - 1, "labels from -1 to 0"),
        (np.eye(4, 3, dtype="f4"), "labels for 3 classes"),
        (np.array(["a"] * 4), "no plain tensor"),
    ],
)
def test_labels_of_our_npz(labels: np.ndarray, line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=line):
        taken(save_ours(tmp_path / "a.npz", labels=labels))


def test_a_column_of_classes_is_read(tmp_path: Path) -> None:
    for labels in (CLASSES[:, None].numpy(), CLASSES.float().numpy()):
        assert taken(save_ours(tmp_path / "a.npz", labels=labels))[0].labels.tolist() == [0, 0, 1, 1]


def test_labels_beyond_the_names_of_another_code(tmp_path: Path) -> None:
    """Of two names in another order than the data set's: an IndexError."""
    backwards = FIELDS | {"classes": REAL.classes[::-1]}
    arrays = {"images": drawn(4, 3, 8, 8).numpy(), "labels": np.array([0, 0, 1, 7])}
    np.savez(tmp_path / "a.npz", **arrays, **{"guard-distilled-1": json.dumps(backwards)})
    with pytest.raises(InputError, match="labels from 0 to 7, it names 2 classes from 0"):
        taken(tmp_path / "a.npz")


def test_a_set_of_one_class_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is 1 class; students tell at least two apart"):
        DistilledSet.of(replace(REAL, classes=("only",), labels=0 * REAL.labels), drawn(4, 3, 8, 8), 0 * CLASSES)


# --- files that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pt", "a.npz", "images_best.pt", "a.safetensors", "a.arrow"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_waited_for(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for source in ("auto", "dc", "mtt", "kip", "ours", "tensors"):
        with pytest.raises(InputError, match=r"not a regular|a single tensor|is no (distilled )?set|there is no file"):
            taken(path, source=source)
    for read_it in (read_pickle, read_npz, DistilledSet.load):
        with pytest.raises(InputError, match="not a regular file"):
            read_it(path)
    with pytest.raises(InputError, match="not a regular file"):
        import_set(path, Reading(), "toy", "data", tmp_path / "runs", lambda size: REAL.resized(size), read)
    assert not list((tmp_path / "runs").rglob("*.*"))


def test_a_file_without_end_is_not_hashed(tmp_path: Path) -> None:
    with open(tmp_path / "a.pt", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"has 1,099,511,627,776 bytes, more than the 16 GiB"):
        import_set(
            tmp_path / "a.pt", Reading(), "toy", "data", tmp_path / "runs", lambda size: REAL.resized(size), read
        )


def kept(path: Path, runs: Path) -> Path:
    return import_set(path, Reading(), "toy", "data", runs, lambda size: REAL.resized(size), read)


def test_a_set_whose_folders_are_renamed_is_another(tmp_path: Path) -> None:
    """The classes of before were served again."""
    write_pictures(tmp_path / "a", ["above", "below"])
    first = kept(tmp_path / "a", tmp_path / "runs")
    assert kept(tmp_path / "a", tmp_path / "runs") == first
    (tmp_path / "a" / "above").rename(tmp_path / "a" / "new000")
    (tmp_path / "a" / "below").rename(tmp_path / "a" / "z")
    with pytest.raises(InputError, match="z is no class of toy"):
        kept(tmp_path / "a", tmp_path / "runs")


def test_a_folder_behind_a_link_is_hashed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "there", ["above", "below"])
    (tmp_path / "a").mkdir()
    for name in ("above", "below"):
        (tmp_path / "a" / name).symlink_to(tmp_path / "there" / name)
    first = kept(tmp_path / "a", tmp_path / "runs")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "there" / "above" / "0.png")
    assert kept(tmp_path / "a", tmp_path / "runs") != first


def test_what_lies_deeper_than_a_set_is_not_read(tmp_path: Path) -> None:
    """A folder that holds the world was hashed before anybody asked whether it is a set."""
    (tmp_path / "a" / "x" / "y").mkdir(parents=True)
    save_mtt(tmp_path / "a", drawn(4, 3, 8, 8))
    (tmp_path / "a" / "learned_lr.json").write_text(json.dumps({"lr": 0.1, "space": "normalised"}))
    first = kept(tmp_path / "a", tmp_path / "runs")
    with open(tmp_path / "a" / "x" / "y" / "large", "wb") as file:
        file.truncate(2**40)
    assert kept(tmp_path / "a", tmp_path / "runs") == first


# --- whitening -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["/tmp/x.safetensors", "../elsewhere/whitening.safetensors", "link", "", "a\0b", "../", "\u202e"]
)
def test_a_whitening_elsewhere_is_not_opened(place: str, tmp_path: Path) -> None:
    for folder in ("set", "elsewhere"):
        Whiten.fit(toy(40).images).save(tmp_path / folder / "whitening.safetensors")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere" / "whitening.safetensors")
    found = DistilledSet.of(REAL, drawn(4, 3, 8, 8), CLASSES, training=MethodTraining(whitening=place))
    with pytest.raises(InputError, match=r"names its whitening .*, which is not in its folder"):
        preprocessing(found, tmp_path / "set")
    for allowed in ("whitening.safetensors", "../../stages/whitening-0123abc/whitening.safetensors"):
        Whiten.fit(toy(40).images).save(tmp_path / "set" / allowed)
        assert isinstance(
            preprocessing(replace(found, training=MethodTraining(whitening=allowed)), tmp_path / "set"), Whiten
        )
    Whiten.fit(toy(40, channels=1).images).save(tmp_path / "set" / "other.safetensors")
    with pytest.raises(InputError, match="whitening of 64 numbers"):
        preprocessing(replace(found, training=MethodTraining(whitening="other.safetensors")), tmp_path / "set")


# --- a file of ours that others made ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept",
    [
        "[" * 200_000,
        json.dumps(FIELDS | {"std": [10**400] * 3}),
        json.dumps(FIELDS | {"mean": [float("nan")] * 3}),
        json.dumps(FIELDS | {"classes": ["only"]}),
        json.dumps(FIELDS | {"backbone": "\x1b[31m" + "x" * 100_000}),
        json.dumps(FIELDS | {"dataset": "x" * 10**6 + "/"}),
        json.dumps([]),
        *(json.dumps(FIELDS | {"shards": [name]}) for name in ("../x.safetensors", "\u202e.safetensors", 5, "x")),
        json.dumps(FIELDS | {"shards": []}),
    ],
    ids=lambda text: text[:20],
)
def test_metadata_of_any_kind_are_one_line(kept: str, tmp_path: Path) -> None:
    tensors = {"labels": CLASSES} | ({} if "shards" in kept else {"images": drawn(4, 3, 8, 8)})
    save_file(tensors, tmp_path / "distilled.safetensors", {"guard-distilled-1": kept})
    with pytest.raises(InputError, match=r"is no distilled set|of one shape|damaged metadata") as error:
        DistilledSet.load(tmp_path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_files_of_images_of_other_shapes_are_one_line(tmp_path: Path) -> None:
    for number, size in enumerate((8, 4)):
        save_file({"images": drawn(2, 3, size, size)}, tmp_path / f"{number}.safetensors")
    kept = json.dumps(FIELDS | {"shards": ["0.safetensors", "1.safetensors"]})
    save_file({"labels": CLASSES}, tmp_path / "distilled.safetensors", {"guard-distilled-1": kept})
    with pytest.raises(InputError, match=r"of one shape; 0\.safetensors \(3, 8, 8\) and 1\.safetensors \(3, 4, 4\)"):
        DistilledSet.load(tmp_path)


# --- Hugging Face --------------------------------------------------------------------------------------------------


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (8, 8), (10 * n, 0, 255)) for n in range(4)]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["below", "above"])})
    columns = {"image": pictures, "label": [1, 1, 0, 0]}
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(str(tmp_path / "hf"))
    return tmp_path / "hf"


def test_the_arrow_file_of_a_folder_is_the_folder(hf: Path) -> None:
    (file,) = hf.glob("*.arrow")
    assert recognised_source(file) == "hf"
    assert torch.equal(taken(file)[0].images, taken(hf)[0].images)
    with pytest.raises(InputError, match=r"--space is normalised, but .*hf.* has pixels by its format"):
        taken(hf, space="normalised")


def test_pictures_of_16_bits_in_a_column(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": [Image.fromarray(deep)] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(str(tmp_path / "a"))
    found = taken(tmp_path / "a", toy(channels=1))[0].images
    assert torch.equal(found[0, 0], torch.from_numpy(deep.astype(np.float32)) / 65535)


@pytest.mark.parametrize("labels", [[0.5, 0.2], [[0], [1]], [[[0]], [[1]]], [0, 5], [], [0, -1]])
def test_labels_of_any_kind_in_a_column(labels: list, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"image": np.zeros((len(labels), 8, 8, 3), "u1").tolist(), "label": labels}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "a"))
    if labels == [[0], [1]]:
        assert taken(tmp_path / "a")[0].labels.tolist() == [0, 1]
        return
    with pytest.raises(InputError, match=r"no whole numbers|labels of|labels from|no rows|cannot be read") as error:
        taken(tmp_path / "a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("state.json", {"_data_files": [{"filename": "../other.arrow"}]}),
        ("state.json", {"_data_files": [{"filename": "/etc/passwd"}]}),
        ("state.json", {"_data_files": 3}),
        ("state.json", {"_data_files": [3]}),
        ("state.json", []),
        ("dataset_dict.json", {"splits": ["../a"]}),
        ("dataset_dict.json", {"splits": "train"}),
    ],
)
def test_a_folder_names_only_what_is_in_it(file: str, change: object, hf: Path) -> None:
    (hf.parent / "other.arrow").write_bytes(next(hf.glob("*.arrow")).read_bytes())
    content = json.loads((hf / "state.json").read_text()) if isinstance(change, dict) else {}
    (hf / file).write_text(json.dumps(content | change if isinstance(change, dict) else change))
    with pytest.raises(InputError, match=f"{file} is damaged"):
        taken(hf)


@pytest.mark.parametrize("text", ["[" * 200_000, "{", "\x1b[31m", '{"a": 1' + 400 * "0" + "}"])
def test_json_of_a_folder_that_is_none(text: str, hf: Path) -> None:
    (hf / "state.json").write_text(text)
    with pytest.raises(InputError, match=r"state\.json cannot be read") as error:
        taken(hf)
    assert str(error.value).isprintable()


@pytest.mark.long
def test_offsets_of_an_arrow_file_are_checked_before_they_are_followed(tmp_path: Path) -> None:
    """pyarrow trusts them: the process ended with a segmentation fault, so this is a process of its own."""
    pytest.importorskip("datasets")
    place = tmp_path / "hf"
    export(DistilledSet.of(REAL, drawn(4, 3, 8, 8), CLASSES), tmp_path, "hf", place)  # with lists of lists of numbers
    (file,) = place.glob("*.arrow")
    whole, rows = file.read_bytes(), struct.pack("<5i", 0, 3, 6, 9, 12)
    assert whole.count(rows) == 1
    file.write_bytes(whole.replace(rows, struct.pack("<5i", 0, 3, 6, 9, 2**28)))
    program = "import sys; from pathlib import Path; from distill.published.read import SOURCES, Reading\n"
    program += "try: SOURCES['hf'](Path(sys.argv[1]), Reading())\nexcept ValueError as error: print(error)"
    words = [sys.executable, "-c", program, str(place)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{place} cannot be read by datasets (ArrowInvalid: " in done.stdout
    assert done.stdout.count("\n") == 1
