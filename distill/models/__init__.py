"""Backbones: the BACKBONES of each module in this folder map names to builders; any other name is a timm model.

A builder is called as builder(channels, image_size, num_classes, **options). Its keyword-only parameters are the
options of a spec, such as "convnet:width=64,norm=batch". timm's ResNets have the option stem, as in
"timm:resnet18:stem=stride2".

timm's ResNets (and RegNets) are initialised as torchvision's, which the official codes use: the scale of the last
BatchNorm of each residual branch is 1. timm's default is 0, with which a fresh network has no residual branches.
"""

import re
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, signature
from pkgutil import iter_modules
from typing import Any, Literal, Protocol, get_args, get_type_hints, overload

import torch
from torch import nn

from distill.errors import InputError, unknown
from distill.outside import object_of_package

__all__ = ["BACKBONES", "Sized", "build"]

Stem = Literal["auto", "imagenet", "stride1", "stride2"]
"""first layers of a ResNet: imagenet is 7x7 of stride 2 with pooling, the others 3x3 without pooling; auto is stride1
up to 64 px and imagenet above"""

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    name: builder
    for module in iter_modules(__path__)
    for name, builder in getattr(import_module(f"{__name__}.{module.name}"), "BACKBONES", {}).items()
}
"""name -> builder of our own networks"""


LARGEST = 2**16
"""largest number that an option of a network takes"""


class Sized(Protocol):
    """A set of images that a network is built for, such as an `ImageSet` or a `DistilledSet`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...


@overload
def build(spec: str, *, like: Sized, generator: torch.Generator) -> nn.Module: ...
@overload
def build(spec: str, *, channels: int, image_size: int, num_classes: int, generator: torch.Generator) -> nn.Module: ...
def build(
    spec: str,
    *,
    like: Sized | None = None,
    channels: int = 0,
    image_size: int = 0,
    num_classes: int = 0,
    generator: torch.Generator,
) -> nn.Module:
    """Return a freshly initialised network on the CPU, in training mode.

    Args:
        spec: a name of BACKBONES or of timm ("timm:NAME" where both have it), with options after a colon:
            "convnet:width=64,depth=2". "package.module:name" is a builder of another package: called as (channels,
            image size, number of classes, *, options), it returns a module.
        like: a set of images that the network takes, whose classes it tells apart; or, instead, the next three.
        channels: of the images.
        image_size: side of the images in pixels.
        num_classes: length of the logits.
        generator: CPU generator; the same state gives the same weights. torch's own generator is left as it was.

    Returns:
        a module from images (N, C, H, W) to logits (N, K).

    Raises:
        InputError: an unknown name, option or value, or images that the network cannot take.

    >>> net = build("convnet:width=8", channels=3, image_size=32, num_classes=10, generator=torch.Generator())
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if like is not None:
        (channels, image_size, _), num_classes = like.image_shape, like.num_classes
    in_package = re.fullmatch(r"(\w+(?:\.\w+)+:\w+)(?::(.*))?", spec)
    if in_package:
        name, rest = in_package[1], in_package[2] or ""
        builder = _from_package(name)
    else:
        name, _, rest = spec.removeprefix("timm:").partition(":")
        builder = BACKBONES[name] if name in BACKBONES and not spec.startswith("timm:") else _timm(name)
    options = _options(name, builder, rest)
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return builder(channels, image_size, num_classes, **options)


def _options(name: str, builder: Callable[..., nn.Module], text: str) -> dict[str, Any]:
    """Return the options of a spec with the types of the builder's keyword-only parameters."""
    maker = builder.__init__ if isinstance(builder, type) else builder
    hints = get_type_hints(maker)
    known = [p.name for p in signature(maker).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    options: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in known:
            raise unknown(f"option of backbone {name}", key, known or ["none"])
        if key in options:
            raise InputError(f"{key} of backbone {name} is given twice; give it once")
        choices = get_args(hints[key])
        if choices and value not in choices:
            raise unknown(f"{key} of backbone {name}", value, choices)
        if not choices and not (re.fullmatch(r"[0-9]{1,6}", value) and int(value) <= LARGEST):
            raise InputError(f"{key} of backbone {name} is '{value}'; it takes a whole number from 0 to {LARGEST}")
        options[key] = value if choices else int(value)
    return options


def _from_package(name: str) -> Callable[..., nn.Module]:
    """Return the builder `package.module:name`."""
    return object_of_package(name, "backbone", callable, "a function that returns a network")


def _timm(name: str) -> Callable[..., nn.Module]:
    """Return a builder for a timm model without pretrained weights; images up to 64 px get stems for small images."""
    import timm  # slow to import

    if not timm.is_model(name):
        close = get_close_matches(name, [*BACKBONES, *timm.list_models()], n=1)
        hint = f"; did you mean '{close[0]}'?" if close else "."
        raise InputError(f"unknown backbone '{name}'{hint} Known: {', '.join(BACKBONES)}, and every timm model name")

    def builder(channels: int, image_size: int, num_classes: int, *, stem: Stem = "auto") -> nn.Module:
        shared: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
        small = image_size <= 64
        attempts: list[dict[str, Any]] = [{"img_size": image_size}, {"zero_init_last": False}, {}]
        attempts = [{"img_size": image_size, "patch_size": 4}, *attempts] if small else attempts
        for extra in attempts:
            try:
                network = timm.create_model(name, pretrained=False, **shared, **extra)
                known = isinstance(getattr(network, "maxpool", None), nn.MaxPool2d) and hasattr(network, "conv1")
                if known and stem != "imagenet" and (small or stem != "auto"):
                    _stem_for_small_images(network, channels, 2 if stem == "stride2" else 1)
                with torch.no_grad():  # most models are built for any size, and fail only when called
                    network.eval()(torch.zeros(1, channels, image_size, image_size))
                return network.train()
            except Exception:  # each model raises another error
                continue
        raise InputError(f"timm's {name} takes no images of {image_size} px; take another backbone or --image-size")

    return builder


def _stem_for_small_images(network: nn.Module, channels: int, stride: int) -> None:
    """Give a ResNet a 3x3 stem without pooling: of stride 1 as for CIFAR, or 2 (7x7 leaves one pixel)."""
    stem = network.conv1
    last = stem[-1] if isinstance(stem, nn.Sequential) else stem
    assert isinstance(last, nn.Conv2d)
    network.conv1 = nn.Conv2d(channels, last.out_channels, 3, stride=stride, padding=1, bias=False)
    network.maxpool = nn.Identity()
