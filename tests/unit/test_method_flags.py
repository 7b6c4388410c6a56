"""Flags of methods, and of methods around other methods: no name is two flags, and names of methods nest."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import tyro

from distill.app.distil import resolve_flags
from distill.app.registry import find_methods, method_named
from distill.data import facts_named
from distill.errors import InputError
from distill.methods.flags import flags_of_command, nested
from distill.runs.description import describe

METHODS = find_methods()
AROUND = ("robust_labels", "guard_views", "robust_features")


@dataclass(frozen=True)
class Inner:
    steps: int = 3


@dataclass(frozen=True)
class Apart:
    images: Annotated[Any, tyro.conf.arg(name="")] = field(default_factory=Inner)
    epochs: int = 1


@dataclass(frozen=True)
class Clashing:
    images: Annotated[Any, tyro.conf.arg(name="")] = field(default_factory=Inner)
    steps: int = 1


def test_a_name_that_would_be_two_flags_gets_the_name_of_the_field_in_front() -> None:
    assert nested(Apart(), "images") == Apart()
    found = nested(Clashing(Inner(5), 2), "images")
    assert [(flag.name, flag.value) for flag in flags_of_command(found)] == [("--images.steps", 5), ("--steps", 2)]
    assert isinstance(found, Clashing)
    assert describe(found) == describe(Clashing(Inner(5), 2))  # runs are the same under either name


@pytest.mark.parametrize("around", AROUND)
def test_every_method_can_stand_in_another_and_no_name_is_two_flags(around: str) -> None:
    facts = facts_named("cifar10")
    for name in METHODS:
        method = method_named(f"{name}_{around}", METHODS)
        assert method is not None, name
        for recipe in method.recipes.values():
            names = [flag.name for flag in flags_of_command(recipe(facts, 10).config)]
            assert len({*names}) == len(names), (name, sorted(names))


NESTED = ("at_cafe_robust_labels", "dsa_robust_features_guard_views", "rome_plain_labels_robust_features")


@pytest.mark.parametrize("name", NESTED)
def test_names_of_methods_nest(name: str) -> None:
    method = method_named(name, METHODS)
    assert method is not None
    assert method.name == name


@pytest.mark.parametrize("name", ["at_mtt_robust_labels", "nothing_robust_features", "_robust_views", ""])
def test_a_method_around_an_unknown_one_is_unknown(name: str) -> None:
    assert method_named(name, METHODS) is None


def test_the_command_line_sets_both_flags_of_one_name() -> None:
    method = method_named("c2r_robust_labels", METHODS)
    assert method is not None
    words = ["--recipe", "smoke", "--temperature", "2", "--images.temperature", "0.5"]
    config = resolve_flags(method, "digits", words)[0].config
    assert (config.labels.temperature, config.images.temperature) == (2.0, 0.5)
    with pytest.raises(InputError, match=r"--iterations, 3; did you mean --images\.iterations"):
        resolve_flags(method, "digits", ["--recipe", "smoke", "--iterations", "3"])
