"""Every recipe of every method for every named data set is, field by field, the one that golden/recipes.json stores.

A deliberate change of a recipe: `python -m tests.golden.test_recipes` writes the file anew, and git shows which methods
and data sets changed.
"""

import hashlib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from distill.app.registry import find_methods
from distill.data import FACTS

STORED = Path(__file__).with_name("recipes.json")
DATASETS = ("cifar10", "cifar100", "digits", "fashion_mnist", "imagenet", "imagenette", "mnist", "tiny_imagenet")
IPCS = (1, 10, 50)
METHODS = find_methods()


def plain(value: Any) -> Any:
    """Return a config as what JSON can hold, each dataclass with its name."""
    if is_dataclass(value):
        named = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__} | named
    return list(map(plain, value)) if isinstance(value, (tuple, list)) else value


def hashes(method: str) -> dict[str, str]:
    """Return for "RECIPE DATASET" a hash of the recipes at every number of images per class."""
    found = {}
    for name, recipe in METHODS[method].recipes.items():
        for dataset in DATASETS:
            text = json.dumps([plain(recipe(FACTS[dataset], ipc)) for ipc in IPCS], sort_keys=True)
            found[f"{name} {dataset}"] = hashlib.sha256(text.encode()).hexdigest()[:8]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_recipes_of_named_data_sets_are_as_stored(method: str) -> None:
    stored = json.loads(STORED.read_text())[method]
    assert hashes(method) == dict(zip(sorted(hashes(method)), stored.split(), strict=True))


def test_every_stored_method_is_there() -> None:
    assert set(json.loads(STORED.read_text())) == set(METHODS)


if __name__ == "__main__":
    lines = {method: " ".join(found[key] for key in sorted(found)) for method in METHODS for found in [hashes(method)]}
    STORED.write_text(json.dumps(lines, indent=1) + "\n")
