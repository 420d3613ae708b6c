"""A data set to be changed, and what the mutations of all kinds share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ANY, TOLD, REFUSED = "any", "told", "refused"
"""What must follow: nothing in particular, a warning or an error, an error."""

SPECIAL = (0.0, -1.0, 1.0, np.nan, np.inf, -np.inf, 1e30, 1e-30, -1e30, 32767.0, 0.5)
WORDS = ("nan", "inf", "-inf", "1e300", "-5", "abc", "", "0,5", "1e", "0x10", "1_0", "--", "١", "1e-320", "1 2", "\0")


@dataclass(frozen=True)
class Change:
    """What was changed, what must follow, and the options of the call that belong to it."""

    what: str
    expect: str = ANY
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tree:
    """A data set of one series with everything that a call can be given, in a folder of its own."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def given(self) -> Path:
        return self.root / "given"

    @property
    def stem(self) -> Path:
        return self.raw / "sub-01" / "dwi" / "sub-01_dwi"

    @property
    def dwi(self) -> Path:
        return Path(f"{self.stem}.nii.gz")

    @property
    def mask(self) -> Path:
        return self.given / "mask.nii.gz"

    @property
    def weights(self) -> Path:
        return self.given / "weights.safetensors"

    @property
    def responses(self) -> tuple[Path, ...]:
        return tuple(self.given / f"{tissue}.txt" for tissue in ("wm", "gm", "csf"))

    def table(self, extension: str) -> Path:
        return Path(f"{self.stem}.{extension}")


Mutation = Callable[[Tree, np.random.Generator], Change]


def odd_json(rng: np.random.Generator) -> object:
    """Return a value of JSON that nobody expects."""
    values = (None, [], {}, "", "x" * 300, 0, -1, 1e308, True, [None], [[1]], {"a": None}, "<script>", "\0", 2**70, 0.5)
    return values[int(rng.integers(len(values)))]


def mutated_json(value: object, rng: np.random.Generator) -> tuple[object, str]:
    """Return a JSON value with one of its parts replaced, and what was done."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = one_of(rng, list(value))
        if rng.random() < 0.1:
            return {key: item for key, item in value.items() if key != name}, f"without {name}"
        inner, what = mutated_json(value[name], rng)
        return {**value, name: inner}, f"{name}: {what}"
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.7:
        number = (0, -1, 2**40, 1e300, value * 1000, 0.5, -value)[int(rng.integers(7))]
        return number, f"{value} -> {number}"
    odd = odd_json(rng)
    return odd, f"{odd!r:.30}"


def one_of(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]
