"""Changes of a set's files, drawn from a seed: of bytes, members of archives, JSON, values, and of what a file is."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

ELSEWHERE = "/tmp/fuzz-elsewhere"
"""a folder that no set may lead to"""
TEXTS = (
    "",
    "\x1b[31mred\x1b]0;title\x07",
    "x" * 100_000,
    "../../x",
    f"{ELSEWHERE}/x",
    "/dev/zero",
    "a\nb",
    "\u202e",
    "a\0b",
)
NUMBERS = (-1, 0, 1, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e308)
LARGE = 10**8
"""bytes of a file that is not changed again, nor is a link: what it leads to is nobody's"""
OTHERS = (None, True, [], {}, [[]], [None], {"a": 1}, ["a"])


def mutate(folder: Path, random: Random) -> str:
    """Change one file of a set, or several times; return what was done."""
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        files = sorted(
            path
            for path in folder.rglob("*")
            if not path.is_symlink() and path.is_file() and path.stat().st_size < LARGE
        )
        if not files:
            break
        path = random.choice(files)
        fitting = _BY_ENDING.get(path.suffix, ())
        change = random.choice(fitting) if fitting and random.random() < 0.5 else random.choice(_ANY)
        if random.random() < 0.08:
            change = random.choice(_KINDS)
        change(path, random)
        done.append(f"{change.__name__.strip('_')} {path.relative_to(folder)}")
    return ", ".join(done)


# --- bytes ---------------------------------------------------------------------------------------------------------


def _changed(content: bytes, random: Random) -> bytes:
    """Return bytes cut short, flipped, zeroed, replaced, swapped, doubled, or with other numbers at their beginning."""
    size = len(content)
    if size < 2:
        return content + random.randbytes(3)
    begin = random.randrange(min(size, 200) if random.random() < 0.4 else size)
    end = min(size, begin + random.choice((1, 2, 4, 8, 64, 512)))
    block = content[begin:end]
    match random.randrange(9):
        case 0:
            return content[:begin]
        case 1:
            return content[:begin] + bytes(byte ^ (1 << random.randrange(8)) for byte in block) + content[end:]
        case 2:
            return content[:begin] + bytes(len(block)) + content[end:]
        case 3:
            return content[:begin] + random.randbytes(len(block)) + content[end:]
        case 4:
            return content[:begin] + block * 2 + content[end:]
        case 5:
            other = random.randrange(size)
            return content[:begin] + content[other : other + len(block)] + content[end:]
        case 6:
            return content[:begin] + b"\xff" * len(block) + content[end:]
        case 7:
            digits = [place for place, byte in enumerate(content[:4000]) if chr(byte).isdigit()]
            place = random.choice(digits) if digits else begin
            return content[:place] + random.choice(b"0123456789-").to_bytes() + content[place + 1 :]
    return content + random.randbytes(random.randrange(1, 99))


def _bytes(path: Path, random: Random) -> None:
    path.write_bytes(_changed(path.read_bytes(), random))


def _empty(path: Path, _: Random) -> None:
    path.write_bytes(b"")


def _noise(path: Path, random: Random) -> None:
    path.write_bytes(random.randbytes(random.randrange(1000)))


# --- archives ------------------------------------------------------------------------------------------------------


def _member(path: Path, random: Random) -> None:
    """Write the archive anew, whole, with a member that is changed, missing, doubled, renamed, packed or enormous."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # damaged before, in whatever way
        members = []
    if not members:
        return _bytes(path, random)
    chosen, what = random.randrange(len(members)), random.randrange(7)
    packing = zipfile.ZIP_DEFLATED if what == 5 else zipfile.ZIP_STORED
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for number, (name, content) in enumerate(members):
            if number == chosen:
                match what:
                    case 0:
                        content = _changed(content, random)
                    case 1:
                        continue
                    case 3:
                        name = random.choice(("../x", "/x", "\x1b[31m", f"{name}x"))
                    case 6:
                        content += bytes(10**6)
            archive.writestr(name, content)
        if what == 4:
            archive.writestr(f"{members[0][0].split('/')[0]}/extra.npy", b"\x80\x02cos\nsystem\n.")
    path.write_bytes(out.getvalue())
    return None


# --- JSON ----------------------------------------------------------------------------------------------------------


def _nasty(random: Random) -> Any:
    return deepcopy(random.choice(random.choice((TEXTS, NUMBERS, OTHERS))))


def _edited(tree: Any, random: Random) -> Any:
    """Return a tree of dicts and lists in which one place has something else, or is gone."""
    if isinstance(tree, dict) and tree and random.random() < 0.9:
        key = random.choice(sorted(tree, key=str))
        rest = {name: value for name, value in tree.items() if name != key}
        match random.randrange(6):
            case 0:
                return rest
            case 1:
                return rest | {random.choice(TEXTS): tree[key]}
        return {name: _edited(value, random) if name == key else value for name, value in tree.items()}
    if isinstance(tree, (list, tuple)) and len(tree) and random.random() < 0.9:
        place = random.randrange(len(tree))
        kept = [_edited(each, random) if at == place else each for at, each in enumerate(tree)]
        return random.choice((kept, kept, kept, kept[:place] + kept[place + 1 :], kept * 2))
    return tree if isinstance(tree, (torch.Tensor, np.ndarray)) and random.random() < 0.1 else _other(tree, random)


def _other(leaf: Any, random: Random) -> Any:
    """Return what may stand in the place of a value: of a tensor mostly another tensor."""
    if not isinstance(leaf, (torch.Tensor, np.ndarray)) or random.random() < 0.15:
        return _nasty(random)
    tensor = torch.as_tensor(leaf)
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: tensor * float("nan"),
        lambda: tensor * 1e30,
        lambda: -tensor.float(),
        lambda: tensor + 0.5,
        lambda: tensor + 1,
        lambda: tensor[:0],
        lambda: tensor[:1],
        lambda: tensor[..., :1],
        lambda: tensor[None],
        lambda: tensor.flatten(),
        lambda: tensor.permute(*reversed(range(tensor.ndim))).contiguous(),
        lambda: tensor.new_zeros(tensor.shape),
        lambda: tensor.to(torch.bfloat16 if isinstance(leaf, torch.Tensor) else torch.int8),
        lambda: tensor.to(random.choice((torch.complex64, torch.bool, torch.float16, torch.int64, torch.uint8))),
        lambda: torch.full(tensor.shape, 2**62),
        lambda: torch.tensor(random.choice((0.5, -1, 3))),
    ]
    if isinstance(leaf, torch.Tensor):
        changes += [lambda: tensor[:1].expand(10**6, *tensor.shape[1:]) if tensor.ndim else tensor, tensor.to_sparse]
    found = random.choice(changes)()
    return found if isinstance(leaf, torch.Tensor) else found.numpy()


def _json(path: Path, random: Random) -> None:
    try:
        tree = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return _bytes(path, random)
    path.write_text(_written(tree, random), errors="surrogatepass")
    return None


def _written(tree: Any, random: Random) -> str:
    return (
        random.choice(("[" * 100_000, '{"a":' * 100_000))
        if random.random() < 0.1
        else json.dumps(_edited(tree, random))
    )


def _metadata(path: Path, random: Random) -> None:
    """Change the header of a safetensors file, with the length that it has then."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        inner = header.get("__metadata__", {})
        name = random.choice(sorted(inner)) if isinstance(inner, dict) and inner and random.random() < 0.7 else None
        if name is not None:
            inner[name] = _written(json.loads(inner[name]), random)
        text = json.dumps(header if name is not None else _edited(header, random)).encode()
    except (ValueError, RecursionError, AttributeError, TypeError):
        return _bytes(path, random)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return None


# --- values --------------------------------------------------------------------------------------------------------


def _values(path: Path, random: Random) -> None:
    """Save tensors or arrays anew, one of them another."""
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                tree = {name: arrays[name] for name in arrays.files}
            changed = _edited({name: each for name, each in tree.items() if each.dtype.kind != "U"}, random)
            changed = changed if isinstance(changed, dict) else tree
            for name, each in tree.items():
                if each.dtype.kind == "U":
                    changed[name] = np.array(
                        _written(json.loads(str(each)), random) if random.random() < 0.7 else str(each)
                    )
            plain = {str(name).replace("/", "_").replace("\0", "_")[:99] or "x": each for name, each in changed.items()}
            np.savez(path, **{name: np.asarray(each) for name, each in plain.items()})
        else:
            tree = _edited(torch.load(path, weights_only=False), random)
            torch.save(tree, path, _use_new_zipfile_serialization=random.random() < 0.7)
    except Exception:  # damaged before, or nothing that can be saved
        _bytes(path, random)


# --- what a file is ------------------------------------------------------------------------------------------------


def _pipe(path: Path, _: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to(
        random.choice(("/dev/zero", "/dev/random", path.name, "nowhere", "/proc/self/fd", "/proc/self/mem"))
    )


def _folder(path: Path, _: Random) -> None:
    path.unlink()
    path.mkdir()


def _gone(path: Path, _: Random) -> None:
    path.unlink()


def _twice(path: Path, random: Random) -> None:
    names = (f"copy{path.suffix}", f"._{path.name}", "\x1b[31m" + path.suffix, "images_7.pt", "data.pt", "x.npz")
    copy = path.with_name(random.choice(names))
    if copy != path:
        shutil.copy(path, copy)


def _sparse(path: Path, _: Random) -> None:
    with open(path, "r+b") as file:
        file.truncate(2**38)


_ANY = (_bytes, _bytes, _bytes, _bytes, _empty, _noise)
_KINDS = (_pipe, _link, _folder, _gone, _twice, _sparse)
_BY_ENDING = {
    ".pt": (_member, _values),
    ".pth": (_member, _values),
    ".npz": (_member, _values),
    ".json": (_json,),
    ".safetensors": (_metadata,),
}
