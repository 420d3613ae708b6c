"""Groups of options that know how they are spelt, bounded and explained, and check themselves when they are made."""

from dataclasses import Field, dataclass, field, fields
from typing import Any

__all__ = ["Option", "Options", "flag", "option", "option_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What the command line and the checks know of one field besides its type and default.

    Attributes
    ----------
    help : str
        One line for ``--help``.
    choices : tuple of str
        All values there are; empty where there is no closed list.
    words : tuple of str
        Values allowed instead of the path of a file.
    bounds : (low, high) or None
        Least and greatest value.
    flags : tuple of str
        Spellings on the command line besides the long option.
    metavar : str
        Stands for the value in ``--help``; derived from the type where empty.
    is_file : bool
        Whether a path must be that of an existing file.
    is_positional : bool
        Whether it is given by its place instead of a long option.
    sloppy : Any
        Value that ``--sloppy`` implies; None for no other.
    """

    help: str
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    flags: tuple[str, ...] = ()
    metavar: str = ""
    is_file: bool = False
    is_positional: bool = False
    sloppy: Any = None


def option(default: Any, help: str, **attributes: Any) -> Any:
    """Return a dataclass field with its `Option`; a default that is a type is called for each value, MISSING is none."""
    metadata = {"option": Option(help=help, **attributes)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def option_of(item: Field) -> Option:
    """Return what a field of an option group says of itself."""
    return item.metadata["option"]


def flag(name: str) -> str:
    """Return the long option of a field."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Options:
    """A group of options, checked when it is made.

    Raises
    ------
    ValueError
        A value is outside its list or bounds, or two values contradict each other; all are named.
    """

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ValueError("; ".join(problems))

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one line each; groups add how their values must fit together."""
        described = [(item.name, getattr(self, item.name), option_of(item)) for item in fields(self)]
        unknown = [
            f"{flag(name)}: found {item!r}, expected one of {', '.join(known.choices)}"
            for name, value, known in described
            for item in (value if isinstance(value, tuple) else (value,))
            if known.choices and item is not None and item not in known.choices
        ]
        outside = [
            f"{flag(name)}: found {value:g}, expected {known.bounds[0]:g} to {known.bounds[1]:g}"
            for name, value, known in described
            if known.bounds and value is not None and not known.bounds[0] <= value <= known.bounds[1]
        ]
        return unknown + outside
