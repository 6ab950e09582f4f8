"""Arguments that are refused at once."""

from collections.abc import Sequence
from typing import Any, get_args


def check_names(layer: str | Sequence[str]) -> list[str]:
    """The names of one or more layers as a list.

    Raises:
        TypeError: One is not a string.
        ValueError: There are none, or one is there twice.
    """
    layers = [layer] if isinstance(layer, str) else list(layer)
    for name in layers:
        if not isinstance(name, str):
            raise TypeError(f"layer: expected the dotted name of a submodule, got {type(name).__name__}")
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layer: expected one or more different names, got {layers}")
    return layers


def check_choice(argument: str, value: Any, choices: Any) -> None:
    """Raise a ValueError unless it is one of the values of a ``Literal``."""
    if value not in get_args(choices):
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")


def check_every(argument: str, value: Any) -> None:
    """Raise a TypeError or ValueError unless it says when pictures are due."""
    if value not in (None, "auto"):
        check_least(argument, value, 1, ", 'auto' or None")


def check_least(argument: str, value: Any, least: int, otherwise: str = "") -> None:
    """Raise a TypeError unless it is an int, a ValueError if it is smaller than the least."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{argument}: expected an int of {least} or more{otherwise}, got {value!r}")
    if value < least:
        raise ValueError(f"{argument}: expected {least} or more{otherwise}, got {value}")
