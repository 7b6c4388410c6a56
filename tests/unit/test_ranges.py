"""Ranges of numbers: what a field of a dataclass refuses where it is made."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest
import tyro

from robust.ranges import Count, Fraction, Inside01, NonNegative, Positive, Range, UpToOne, Whole, check_ranges, shown


@dataclass(frozen=True)
class Inner:
    depth: Count = 1

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Settings:
    plain: float = 0.0
    number: int = 0
    rate: Positive = 0.1
    weight: NonNegative | None = None
    share: Fraction = 1.0
    level: Inside01 = 0.5
    momentum: UpToOne = 0.9
    steps: Count = 1
    warmup: Whole = 0
    seed: Annotated[int, Range(least=0, most=2**63 - 1)] = 0
    eps: Annotated[float, Range(least=0, most=1, hint="for pixels in [0, 1]")] = 0.1
    betas: tuple[UpToOne, ...] = (0.9, 0.999)
    pair: tuple[Count, Positive] = (1, 0.5)
    sizes: list[Count] = field(default_factory=list)
    size: Count | Literal["all"] = "all"
    scale: Positive | tuple[Positive, ...] = 1.0
    flag: bool = False
    name: str = "nan"
    anything: Any = None
    call: Callable[[float], float] | None = None
    inner: Inner = field(default_factory=Inner)
    constant: ClassVar[float] = float("nan")

    def __post_init__(self) -> None:
        check_ranges(self)


NAN, INF = float("nan"), float("inf")
WRONG: dict[str, list[Any]] = {
    "plain": [NAN, INF, -INF, 1e39, 10**400, "1", None, True],
    "number": [10**20, -(2**31) - 1, 0.5, NAN, INF, "1", None, True],
    "rate": [0, -1, NAN, INF, 1e39],
    "weight": [-1e-9, NAN, INF],
    "share": [-0.1, 1.1, NAN],
    "level": [0, 1, NAN],
    "momentum": [-1, 1, NAN],
    "steps": [0, -1, 10**20, 1.5, 10**5000],
    "warmup": [-1, 2**31 + 1],
    "seed": [-1, 2**63],
    "eps": [8, -1, NAN],
    "betas": [(0.9, NAN), (0.9, 1.0)],
    "pair": [(0, 0.5), (1, 0.0)],
    "sizes": [[1, 0], [10**20]],
    "size": [0, "some", None],
    "scale": [0, (1.0, 0.0)],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values], ids=shown
)
def test_a_value_outside_is_refused_in_one_short_line(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}(\[\d\])? is .*; it must be ") as caught:
        Settings(**{name: value})
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_values_inside_are_taken() -> None:
    Settings(plain=1e38, number=2**31, rate=1, weight=0, seed=2**63 - 1, eps=1, sizes=[1, 2], size=3, scale=(1.0, 2))
    Settings(anything=NAN, call=abs, plain=10**20)


def test_a_dataclass_inside_checks_itself() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        Settings(inner=Inner(0))


def test_messages_say_the_bounds_the_unit_and_none() -> None:
    with pytest.raises(ValueError, match=r"^eps is 8; it must be in \[0, 1\], for pixels in"):
        Settings(eps=8)
    with pytest.raises(ValueError, match=r"^weight is nan; it must be a finite number >= 0, or None$"):
        Settings(weight=NAN)
    with pytest.raises(ValueError, match=r"^steps is about 10\^20; it must be a whole number >= 1"):
        Settings(steps=10**20)
    assert shown(-(10**30)) == "-about 10^30"


def test_flags_are_parsed_as_without_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    made = tyro.cli(Inner, args=["--depth", "3"])
    assert made == Inner(3)
    with pytest.raises(SystemExit):
        tyro.cli(Inner, args=["--help"])
    assert "--depth INT" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tyro.cli(Inner, args=["--depth", "0"])
    assert "depth is 0; it must be >= 1" in capsys.readouterr().err
