"""What others' files may do to a reader: wait for ever, never end, nest without end, write to the terminal."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from distill.errors import InputError
from distill.published.unpickled import read_npz
from distill.runs.foreign import brief, open_regular, parse_json, reachable, read_json, refuse_irregular


def irregular(folder: Path) -> list[Path]:
    """Make what has a file's name and is none."""
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(folder)  # a socket's name is short
        one.bind("socket")
        os.chdir(here)
    return [folder / name for name in ("pipe", "zero", "folder", "socket")]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"abc"
        refuse_irregular(tmp_path / name)
    for path in irregular(tmp_path):
        with pytest.raises(OSError, match=r"\w") as error:
            open_regular(path)
        assert error.value.strerror
        with pytest.raises(InputError, match="cannot be read"):
            refuse_irregular(path)
    with pytest.raises(InputError, match="there is no file"):
        refuse_irregular(tmp_path / "none")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(17 * 2**30)
    with pytest.raises(InputError, match="more than the 16 GiB"):
        refuse_irregular(tmp_path / "sparse")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "1" + 400 * "0",
        str(2**63),
        str(-(2**63) - 1),
        "1e999",
        "NaN",
        "[-Infinity]",
        "{",
        "",
        "\ud800",
        b"\xff",
    ],
)
def test_json_is_read_or_refused_with_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_json_of_any_ordinary_kind_is_read() -> None:
    assert parse_json('{"a": [1, -2.5e-3, true, null, "x"]}') == {"a": [1, -0.0025, True, None, "x"]}
    assert parse_json(f"[{2**63 - 1}, {-(2**63)}]") == [2**63 - 1, -(2**63)]


def test_paths_that_the_system_does_not_take_are_one_line(tmp_path: Path) -> None:
    assert reachable(tmp_path / "none" / "x") == tmp_path / "none" / "x"
    for path in (Path("x" * 5000), tmp_path / "a\0b", Path("a\x1b" * 3000)):
        with pytest.raises(InputError, match=r"cannot be read \(") as error:
            reachable(path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 200


def test_a_file_of_json_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(2**30)
    with pytest.raises(ValueError, match="more than 64 MiB"):
        read_json(tmp_path / "a.json")


def test_what_others_say_is_one_printable_line() -> None:
    for text in ("a\nb\tc", "\x1b]0;title\x07", "x" * 10**6, "\u202e right to left", "\ud800", "\x00"):
        line = brief(text)
        assert line.isprintable()
        assert len(line) <= 100
    assert brief(ValueError("plain")) == "plain"


def test_a_text_with_signs_that_do_not_exist_is_refused(tmp_path: Path) -> None:
    """Found by damaging sets: Python's text of such an array ends in a SystemError when it is cut."""
    path = tmp_path / "a.npz"
    array = np.array(["abc"])
    np.savez(path, text=np.frombuffer(b"\xff\xff\xff\x7f" + array.tobytes()[4:], array.dtype))
    with pytest.raises(InputError, match="a text has signs that do not exist"):
        read_npz(path)
