"""Weights of teachers: the weights that training starts from (a file or timm), and the teacher of a finished stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.errors import InputError, unknown
from distill.runs.files import read_tensors
from distill.runs.named_files import path_of, unchanged, with_digest

__all__ = [
    "check_classes",
    "check_start",
    "first_not_finite",
    "load_start",
    "load_teacher",
    "load_weights",
    "require_start",
    "start_with_digest",
    "without_wrappers",
]

WRAPPERS = {"module", "_orig_mod"}
"""attributes of DataParallel, DistributedDataParallel and torch.compile that hold the wrapped network"""


def without_wrappers(name: str) -> str:
    """Return the name of a tensor without the parts that wrappers add.

    >>> without_wrappers("module._orig_mod.features.module.0.weight")
    'features.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with values that are not finite; None if all are finite.

    >>> first_not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})
    'b'
    """
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def load_weights(network: nn.Module, found: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a network. Their names may have parts that wrappers add.

    Raises:
        InputError: the architecture or the number of classes differs (the message names the first tensor that does), or
            values are not finite.
    """
    current = network.state_dict()
    named = {without_wrappers(name): name for name in current}
    renamed = {named.get(without_wrappers(name), name): tensor for name, tensor in found.items()}
    found = renamed if len(renamed) == len(found) else found
    different = [name for name in current if name not in found or found[name].shape != current[name].shape]
    different += [name for name in found if name not in current]
    if different:
        name = different[0]
        there, here = (tuple(each[name].shape) if name in each else "nothing" for each in (found, current))
        raise InputError(
            f"the weights of {source} do not fit the network: {len(different)} tensors differ, {name} is {there} there "
            f"and {here} here; give the --backbone, the data and the image size that the weights belong to"
        )
    if name := first_not_finite(found):
        raise InputError(f"the weights of {source} are unsound: {name} has values that are not finite")
    network.load_state_dict(dict(found))


def load_teacher(network: nn.Module, path: Path) -> None:
    """Load the file of a teacher into a network.

    Raises:
        InputError: the file belongs to another stage, architecture or number of classes, or has values that are not
            finite.
    """
    found, facts = read_tensors(path)
    stage = path.parent.name
    if facts.get("stage", stage) != stage:  # files of earlier versions lack this field
        raise InputError(f"{path} is the teacher of {facts['stage']}; delete it to have it made anew")
    if name := first_not_finite(found):
        raise InputError(f"{path} is unsound: {name} has values that are not finite; delete it to have it made anew")
    load_weights(
        network, found, f"{path} ({facts.get('backbone', 'no backbone named')}, {facts.get('classes', '?')} classes)"
    )


# The weights of squeeze.start


def start_with_digest(start: str) -> str:
    """Return the weights that training starts from, with the digest of the file if they are in one."""
    return with_digest(start) if _in_file(start) else start


def require_start(start: str, backbone: str) -> None:
    """Refuse weights that do not exist.

    Args:
        start: scratch, pretrained, pretrained:TAG, or a file, as `start_with_digest` returns it.
        backbone: of the network.

    Raises:
        InputError: the file, or the tag of the backbone, does not exist; or the file has changed.
    """
    if _of_timm(start):
        _timm_name(backbone, start)
    elif _in_file(start) and not (path := unchanged(start, "squeeze.start")).is_file():
        raise InputError(
            f"squeeze.start is {path}: no such file; give scratch, pretrained, pretrained:TAG, or a file of weights"
        )


def check_start(start: str, backbone: str, network: nn.Module) -> None:
    """Refuse weights that training cannot start from, without a download.

    Args:
        start: as of `require_start`.
        backbone: of the network.
        network: of the teacher; the weights of a file are loaded into it.

    Raises:
        InputError: the weights do not exist or do not fit, or the file has changed.
    """
    require_start(start, backbone)
    if _in_file(start):
        _load_file(network, start)


def check_classes(start: str, backbone: str, num_classes: int) -> None:
    """Refuse weights whose classifier would stay untrained, for a teacher that is not trained further.

    Args:
        start: as of `require_start`; a file is checked by `check_start`.
        backbone: of the teacher.
        num_classes: of the data.

    Raises:
        InputError: timm's weights have another number of classes.
    """
    if not _of_timm(start):
        return
    from timm.models import get_pretrained_cfg  # slow to import

    name = _timm_name(backbone, start)
    config = get_pretrained_cfg(name)
    if config is not None and config.num_classes != num_classes:
        raise InputError(
            f"squeeze.start is {start}: the weights of {name} are of {config.num_classes} classes, the data have "
            f"{num_classes}: with --squeeze.epochs 0 the classifier would stay untrained; give --squeeze.epochs 1 or "
            f"more, or a file of weights of {num_classes} classes"
        )


def load_start(network: nn.Module, start: str, backbone: str, channels: int) -> None:
    """Load the weights that training starts from into a network.

    Raises:
        InputError: the weights cannot be read or downloaded, or do not fit.
    """
    if _of_timm(start):
        found = _pretrained(_timm_name(backbone, start), channels, network.state_dict())
        load_weights(network, found, f"squeeze.start, {start},")
    else:
        _load_file(network, start)


def _load_file(network: nn.Module, start: str) -> None:
    path = path_of(start)
    load_weights(network, _weights(path), f"squeeze.start, {path},")


def _in_file(start: str) -> bool:
    return start != "scratch" and not _of_timm(start)


def _of_timm(start: str) -> bool:
    return start.partition(":")[0] == "pretrained"


def _timm_name(backbone: str, start: str) -> str:
    """Return timm's name of the weights of pretrained or pretrained:TAG: MODEL or MODEL.TAG.

    Raises:
        InputError: the model has no weights of that tag.
    """
    import timm  # slow to import

    name, (_, tagged, tag) = backbone.removeprefix("timm:").partition(":")[0], start.partition(":")
    if not tagged:
        return name
    model = name.partition(".")[0]
    tags = [each.removeprefix(f"{model}.") for each in timm.list_pretrained(f"{model}.*")]
    if tag not in tags:
        raise unknown(f"tag of --squeeze.start for {model}", tag, tags or ["none"])
    return f"{model}.{tag}"


def _weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file, as safetensors or read by torch without unpickling code.

    Raises:
        InputError: the file holds no weights.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model", "model_state_dict"):
            found = found.get(key, found)
        return {name: tensor for name, tensor in found.items() if torch.is_tensor(tensor)}
    except Exception as error:  # torch.load raises many types, from EOFError to UnpicklingError
        line = (str(error).splitlines() or [""])[0][:120]
        raise InputError(f"squeeze.start is {path}: no file of weights ({type(error).__name__}: {line})") from None


def _pretrained(name: str, channels: int, initial: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's weights of a network, without the classifier if it has another number of classes.

    Args:
        name: timm's name of the weights.
        channels: of the images.
        initial: weights of the untrained network, which replace a classifier that does not fit.

    Raises:
        InputError: timm has no such weights, or they cannot be downloaded.
    """
    import timm  # slow to import

    try:
        pretrained = timm.create_model(name, pretrained=True, in_chans=channels)
    except Exception as error:  # timm, the hub and the network raise many types
        line = (str(error).splitlines() or [""])[0][:160]
        raise InputError(
            f"squeeze.start is pretrained, but the weights of {name} are not available ({line}); give a file of weights"
        ) from None
    default: Any = pretrained.default_cfg
    classifier = f"{default['classifier']}."
    found = pretrained.state_dict()
    return {
        n: initial[n] if n.startswith(classifier) and initial[n].shape != tensor.shape else tensor
        for n, tensor in found.items()
        if n in initial or not n.startswith(classifier)
    }
