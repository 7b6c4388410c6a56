import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from distill.data import ImageSet, decode, image_files, threads
from distill.data.damaged import find_damaged, refusal
from distill.data.image_files import ImageFiles, read_all
from distill.errors import InputError
from distill.runs.ranks import alone
from robust.preprocess import Normalize


def picture(width: int = 57, height: int = 43, seed: int = 0) -> Image.Image:
    """Smooth colours, as in a photograph."""
    few = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    return Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def deep_png(pixels: np.ndarray) -> bytes:
    """Make a PNG of 16 bits a channel, which Pillow does not write of colours: pixels (H, W, 1 to 4) uint16."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, bands = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bmp_of_16_bits_a_pixel() -> bytes:
    """Five for red, six for green, five for blue."""
    pixels = (np.arange(64, dtype="<u2") * 999).tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    return b"BM" + struct.pack("<IHHI", 66 + len(pixels), 0, 0, 66) + header + pixels


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded(picture(), "JPEG", exif=exif)


def bare_cmyk() -> bytes:
    """Without Adobe's marker, which says that the inks are inverted."""
    data = encoded(cmyk(), "JPEG")
    begin = data.find(b"\xff\xee")
    return data[:begin] + data[begin + 16 :]


def cmyk() -> Image.Image:
    return Image.merge("CMYK", (*picture().split(), picture(seed=1).convert("L")))


def with_alpha() -> Image.Image:
    return Image.merge("RGBA", (*picture().split(), picture(seed=1).convert("L")))


KINDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(picture(), "JPEG"),
    "progressive": lambda: encoded(picture(), "JPEG", progressive=True),
    "jpeg of full colour": lambda: encoded(picture(), "JPEG", subsampling=0),
    "jpeg without YCC": lambda: encoded(picture(), "JPEG", keep_rgb=True),
    "grey jpeg": lambda: encoded(picture().convert("L"), "JPEG"),
    "cmyk": lambda: encoded(cmyk(), "JPEG"),
    "cmyk without Adobe": bare_cmyk,
    "turned": turned,
    "png": lambda: encoded(picture(), "PNG"),
    "grey png": lambda: encoded(picture().convert("L"), "PNG"),
    "bits": lambda: encoded(picture().convert("1"), "PNG"),
    "palette": lambda: encoded(picture().convert("P"), "PNG"),
    "small palette": lambda: encoded(picture().quantize(3), "PNG"),
    "alpha": lambda: encoded(with_alpha(), "PNG"),
    "grey and alpha": lambda: encoded(with_alpha().convert("LA"), "PNG"),
    "transparent palette": lambda: encoded(picture().convert("P"), "PNG", transparency=bytes(range(256))),
    "transparent colour": lambda: encoded(picture(), "PNG", transparency=(1, 2, 3)),
    "webp": lambda: encoded(with_alpha(), "WEBP"),
    "moving": lambda: encoded(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)]),
    "tiff": lambda: encoded(picture(), "TIFF"),
    "bmp": lambda: encoded(picture(), "BMP"),
    "bmp of 16 bits a pixel": bmp_of_16_bits_a_pixel,
    "gif": lambda: encoded(picture(), "GIF"),
}


def by_pillow(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        image = ImageOps.exif_transpose(image)
        image = image.convert("RGBA") if "transparency" in image.info else image
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def files_of(folder: Path, contents: list[bytes], size: int = 8, view: str = "square") -> ImageFiles:
    paths = [folder / f"{number:03d}.JPEG" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return ImageFiles(np.array([os.fsencode(path) for path in paths]), size, view)


@pytest.fixture
def several(tmp_path: Path) -> ImageFiles:
    shapes = [(8, 8), (20, 9), (9, 30), (8, 8), (50, 50), (7, 7), (8, 12)]
    return files_of(tmp_path, [encoded(picture(*shape, seed), "JPEG") for seed, shape in enumerate(shapes)])


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_pillow_sees(kind: str, tmp_path: Path) -> None:
    """Under whatever name: ImageNet has a PNG and CMYK files called .JPEG."""
    data = KINDS[kind]()
    image = files_of(tmp_path, [data]).decode(0)
    assert image.dtype == torch.uint8
    assert torch.equal(image, by_pillow(data))
    image += 1  # writable, no warning


def test_only_jpeg_is_trusted_to_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its PNG decoder ends the process on damaged files: a PNG with one wrong byte must never get there."""
    fast, seen = decode._fast_decoder(), []

    def recorded(data: torch.Tensor, *options: object) -> torch.Tensor:
        seen.append(bytes(data[:2].tolist()))
        return fast(data, *options)

    whole = [make() for make in KINDS.values()]
    files = files_of(tmp_path, whole)
    monkeypatch.setattr(decode, "_fast_decoder", lambda: recorded)
    with_both = files[:]
    assert seen == [b"\xff\xd8"] * sum(data.startswith(b"\xff\xd8") for data in whole)
    assert len(seen) >= 8
    monkeypatch.setattr(decode, "_fast_decoder", lambda: None)  # a torchvision without it
    assert torch.equal(files[:], with_both)


def test_damaged_png_is_refused_not_fatal(tmp_path: Path) -> None:
    data, refused = KINDS["png"](), 0
    for place in range(50, len(data) - 20, 97):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        try:
            files_of(tmp_path, [bytes(broken)]).decode(0)
        except InputError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "grey jpeg"])
def test_a_jpeg_cut_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    """libjpeg alone would only warn, and grey the rest."""
    data = KINDS[kind]()
    for length in range(0, len(data), 3):
        files = files_of(tmp_path, [data[:length]])
        with pytest.raises(InputError, match=r"000\.JPEG cannot be read as an image \("):
            files.decode(0)
        with pytest.raises(InputError, match=r"000\.JPEG cannot be read as an image \("):
            files[0]


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it is empty"),
    "text": (lambda: b"not an image at all", "it is not an image"),
    "cut": (lambda: KINDS["jpeg"]()[:-100], "truncated"),
    "cut png": (lambda: KINDS["png"]()[:-100], "truncated"),
    "floats": (
        lambda: encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
        "more than 8 bits per channel are not",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_named(kind: str, tmp_path: Path) -> None:
    make, why = DAMAGED[kind]
    files = files_of(tmp_path, [KINDS["jpeg"](), make(), KINDS["png"]()])
    for attempt in (lambda: files.decode(1), lambda: files[:], lambda: files[1], lambda: read_all([files])):
        with pytest.raises(InputError) as raised:
            attempt()
        text = str(raised.value)
        assert text.startswith(f"{tmp_path / '001.JPEG'} cannot be read as an image (")
        assert text.endswith("repair or remove it, or give --damaged skip")
        assert why in text
        assert "\n" not in text
    assert [index for index, _ in find_damaged(files.paths)] == [1]
    assert len(files[torch.tensor([0, 2])]) == 2


def test_missing_file_and_folder_of_that_name(tmp_path: Path) -> None:
    files = files_of(tmp_path, [KINDS["jpeg"](), KINDS["jpeg"]()])
    (tmp_path / "000.JPEG").unlink()
    (tmp_path / "001.JPEG").unlink()
    (tmp_path / "001.JPEG").mkdir()
    with pytest.raises(InputError, match=r"000\.JPEG cannot be read as an image \(No such file or directory\)"):
        files[0]
    with pytest.raises(InputError, match=r"001\.JPEG cannot be read as an image \(Is a directory\)"):
        files.decode(1)


def test_all_damaged_files_are_counted_and_three_named(tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
    good = KINDS["jpeg"]()
    parts = [files_of(tmp_path / "a", [good, b"", b"x", good]), files_of(tmp_path / "b", [b"", good, b"", good])]
    with pytest.raises(InputError) as raised:
        read_all(parts)
    text = str(raised.value)
    assert text.startswith(f"4 of 8 files cannot be read as images: {tmp_path}/a/001.JPEG (it is empty), ")
    assert f"{tmp_path}/a/002.JPEG (it is not an image), {tmp_path}/b/000.JPEG (it is empty), ...: repair or " in text
    assert text.endswith("--damaged skip")
    assert "..." not in str(refusal([(b"a", "x"), (b"b", "x"), ("c", "x")], 9))


# --- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (260, 256), (120, 90), (700, 60)])
@pytest.mark.parametrize("size", [224, 64])
def test_crop_is_imagenet_s_evaluation(shape: tuple[int, int], size: int, tmp_path: Path) -> None:
    image = picture(*shape)
    files = files_of(tmp_path, [encoded(image, "PNG")], size, "crop")
    official = Compose([Resize({224: 256, 64: 73}[size]), CenterCrop(size), PILToTensor()])(image)
    off = (files[0] * 255 - official).abs()
    assert off.max() < 1.01  # torchvision rounds tensors and Pillow's images apart by at most one level
    assert off.mean() < 0.05


@pytest.mark.parametrize("shape", [(20, 16), (24, 32), (40, 40), (40, 8)])
def test_square_is_the_mean_over_areas_of_the_central_square(shape: tuple[int, int], tmp_path: Path) -> None:
    image, side = picture(*shape), min(shape)
    left, top = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = np.array(image)[top : top + side, left : left + side].astype(np.float64)
    expected = square.reshape(8, side // 8, 8, side // 8, 3).mean((1, 3)).transpose(2, 0, 1)
    seen = files_of(tmp_path, [encoded(image, "PNG")])[0] * 255
    assert np.abs(seen.numpy() - expected).max() <= 1.001  # Pillow rounds twice, after rows and columns


def test_square_of_uneven_sides_is_pillow_s(tmp_path: Path) -> None:
    image = picture(13, 20)
    expected = torch.from_numpy(np.array(image.resize((8, 8), Image.Resampling.BOX, (0, 3, 13, 16)))).permute(2, 0, 1)
    assert torch.equal(files_of(tmp_path, [encoded(image, "PNG")])[0], expected / 255)


@pytest.mark.parametrize("view", ["crop", "square"])
def test_squares_of_that_size_are_untouched(view: str, tmp_path: Path) -> None:
    image = picture(16, 16)
    files = files_of(tmp_path, [encoded(image, "PNG"), encoded(picture(16, 20), "PNG")], 16, view)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(files[0], expected)
    assert files.resized(12)[0].shape == (3, 12, 12)


@pytest.mark.parametrize("view", ["crop", "square"])
def test_sixteen_bits_go_through_every_view(view: str, tmp_path: Path) -> None:
    """As the same picture of 8 bits does, but for the rounding; read into floats or, on a device, beside bytes."""
    few = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    files = files_of(tmp_path, [deep_png(few.astype(np.uint16) * 257), encoded(Image.fromarray(few), "PNG")], 8, view)
    deep, shallow = files[:]
    assert (deep - shallow).abs().max() < 1.01 / 255
    assert ((deep * 255) % 1 > 0.01).any()  # nothing was rounded to bytes
    assert torch.equal(read_all([files])[0][0], deep)
    out, beside = np.empty((2, 3, 8, 8), np.uint8), {}
    assert list(files._read(files.paths, out, beside)) == ["", ""]
    assert torch.equal(torch.from_numpy(beside[0]), deep)
    assert torch.equal(torch.from_numpy(out[1]) / 255, shallow)
    assert torch.equal(files.decode(0), torch.from_numpy(few).permute(2, 0, 1))


# --- the array -------------------------------------------------------------------------------------------------------


def test_it_describes_itself_as_a_tensor_does(several: ImageFiles) -> None:
    whole = several[:]
    for name in ("shape", "ndim", "dtype", "device"):
        assert getattr(several, name) == getattr(whole, name)
    assert (len(several), several.numel()) == (len(whole), whole.numel())
    assert whole.is_contiguous()
    assert 0 <= whole.min() < whole.max() <= 1


@pytest.mark.parametrize(
    "which",
    [
        slice(None),
        slice(2, 5),
        slice(None, None, 3),
        slice(5, 5),
        slice(-2, None),
        torch.tensor([4, 0, 4, -1]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([True, False, False, True, False, True, False]),
        3,
        -1,
        torch.tensor(2),
    ],
    ids=str,
)
def test_indexing_is_that_of_a_tensor(which: int | slice | torch.Tensor, several: ImageFiles) -> None:
    expected = several[:][which]
    assert torch.equal(several[which], expected)
    assert several[which].shape == expected.shape


@pytest.mark.parametrize("which", [7, -8, torch.tensor([0, 7]), torch.tensor([True, False])], ids=str)
def test_index_out_of_range(which: int | torch.Tensor, several: ImageFiles) -> None:
    with pytest.raises(IndexError):
        several[which]


def test_take_and_split(several: ImageFiles) -> None:
    who = torch.tensor([5, 1, 1])
    assert torch.equal(several.take(who)[:], several[who])
    assert torch.equal(several.take(torch.arange(7) % 2 == 0)[:], several[::2])
    parts = list(several.split(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), several[:])


@pytest.mark.parametrize("chunk", [2, 256])
def test_threads_change_nothing(chunk: int, several: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_CHUNK", chunk)
    results = []
    for count in (1, 4):
        monkeypatch.setattr(threads, "_threads", lambda count=count: count)
        results.append(several.take(torch.arange(35) % 7)[:])
        assert list(threads.in_threads(str, range(35))) == [str(number) for number in range(35)]
    assert torch.equal(*results)


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr("distill.runs.threads.CGROUP", Path("nowhere"))
    assert threads._threads() == 16
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "16")  # on two machines
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert threads._threads() == 8
    with alone():
        assert threads._threads() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert threads._threads() == 1


class Single(Dataset):
    def __init__(self, files: ImageFiles):
        self.files = files

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.files[torch.tensor([index])][0], threads._threads()


def test_workers_are_handed_paths_alone(several: ImageFiles) -> None:
    again = pickle.loads(pickle.dumps(several))
    assert torch.equal(again[:], several[:])
    assert (again.size, again.view, again.device) == (several.size, several.view, several.device)
    many = several.take(torch.arange(70_000) % 7)
    assert len(pickle.dumps(many)) < 70_000 * (several.paths.itemsize + 1)
    loader = DataLoader(Single(several), batch_sampler=[[0, 3], [6, 1]], num_workers=1)
    batches, threads = zip(*loader, strict=True)
    assert torch.equal(torch.cat(batches), several[torch.tensor([0, 3, 6, 1])])
    assert torch.cat(threads).tolist() == [1] * 4


def test_text_paths_will_do(several: ImageFiles) -> None:
    paths = np.array([os.fsdecode(path) for path in several.paths])
    assert torch.equal(ImageFiles(paths, 8, "square")[:], several[:])


def test_what_needs_the_whole_is_told_so(several: ImageFiles) -> None:
    for attempt in (Normalize([0.5] * 3, [0.5] * 3), torch.mean, torch.nn.functional.relu):
        with pytest.raises(InputError, match="give a smaller --image-size, or use another method"):
            attempt(several)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": ["a"]}, "paths are list"),
        ({"paths": np.zeros(3)}, "array of bytes or str"),
        ({"paths": np.array([["a"]])}, "flat"),
        ({"size": 0}, "size is 0"),
        ({"view": "round"}, "view is 'round'; it must be one of crop, square"),
    ],
)
def test_bad_values(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFiles(**({"paths": np.array(["a"]), "size": 8, "view": "crop"} | change))


# --- in an ImageSet --------------------------------------------------------------------------------------------------


def sets(files: ImageFiles) -> tuple[ImageSet, ImageSet]:
    rest = (torch.tensor([0, 1, 0, 1, 0, 1, 0]), ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    return ImageSet("lazy", files, *rest), ImageSet("memory", files[:], *rest)


def test_an_image_set_of_files_is_one_of_tensors(several: ImageFiles) -> None:
    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    lazy, memory = sets(several)
    assert (len(lazy), lazy.num_classes, lazy.image_shape) == (7, 2, (3, 8, 8))
    assert torch.equal(lazy.sample(0, 3, draw()), memory.sample(0, 3, draw()))
    for ours, theirs in (
        (lazy.subset(5), memory.subset(5)),
        *zip(lazy.split(0.4, draw()), memory.split(0.4, draw()), strict=True),
        (lazy.to("cpu"), memory),
    ):
        assert isinstance(ours.images, ImageFiles)
        assert torch.equal(ours.images[:], theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
    assert lazy.resized(8) is lazy
    small = lazy.resized(5)
    assert small.image_shape == (3, 5, 5)
    assert torch.equal(small.images[:], ImageFiles(several.paths, 5, "square")[:])


def test_nothing_is_decoded_before_it_is_asked_for(several: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy, _ = sets(several)
    decoded = []
    plain = image_files.decode_file
    monkeypatch.setattr(image_files, "decode_file", lambda path: decoded.append(path) or plain(path))
    made = lazy.subset(5).split(0.4, torch.Generator())[0].resized(6).to("cpu")
    assert decoded == []
    made.images[1]
    assert len(decoded) == 1
