"""The tensor that is meant among what a module is given or returns, and another one in its place."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: An index, a key, an attribute, or a path of them.
Output = int | str | Sequence[int | str]


def select_tensor(value: Any, output: Output | Callable[[Any], Any] | None, where: str) -> Tensor:
    """The tensor that is meant.

    Args:
        value: A tensor, or a tuple, list, mapping, dataclass or other object with tensors in it, nested or not.
        output: Index, key or attribute of the tensor, a path of them, or a function of ``value``; ``None`` if there is
            one floating-point tensor only.
        where: What the caller calls ``value``, for the error.

    Raises:
        TypeError: There is no tensor, or not at ``output``.
        ValueError: There are several and ``output`` does not say which, or there is no such entry.

    Example:
        >>> import torch
        >>> select_tensor({"mean": torch.zeros(2), "deviation": torch.ones(2)}, "deviation", "encoder")
        tensor([1., 1.])
    """
    if output is None and isinstance(value, Tensor):
        return value
    found = output(value) if callable(output) else _follow(value, tensor_path(value, output, where))
    if not isinstance(found, Tensor):
        inside = _told([path for path, _ in _tensors(found)])
        told = f" with tensors at {inside}; go on to one of these" if inside else ""
        raise TypeError(f"{where}: expected a tensor at output={output!r}, got {type(found).__name__}{told}")
    return found


def tensor_path(value: Any, output: Output | None, where: str, kind: str = "") -> tuple[int | str, ...]:
    """The way to the tensor that is meant, ``()`` if ``value`` is that tensor; errors as :func:`select_tensor`."""
    if isinstance(value, Tensor) and output is None:
        return ()
    kind = kind or f"a {type(value).__name__}"
    if output is None:
        paths = [path for path, _ in _tensors(value)]
        if not paths:
            raise TypeError(f"{where}: expected a tensor, or something with a tensor in it, got {kind}")
        if len(paths) > 1:
            example = paths[0][0] if len(paths[0]) == 1 else paths[0]
            raise ValueError(
                f"{where}: expected one tensor, got {kind} with tensors at {_told(paths)}, and it is not said "
                f"which; pass output={example!r}, for example"
            )
        return paths[0]
    path = (output,) if isinstance(output, (int, str)) else tuple(output)  # a union cannot be compiled by torch 2.8
    try:
        _follow(value, path)
    except (AttributeError, IndexError, KeyError, TypeError):
        there = _told([path for path, _ in _tensors(value)]) or "nowhere"
        raise ValueError(
            f"{where}: expected output={output!r} to lead to a tensor, but {kind} has tensors at {there}"
        ) from None
    return path


def replace_tensor(value: Any, path: Sequence[int | str], tensor: Any) -> Any:
    """``value`` with another tensor at the end of ``path``: the same type, the rest as it is, nothing written into.

    Raises:
        TypeError: What is there cannot be set, as a property cannot.

    Example:
        >>> replace_tensor(("latents", {"mask": 1}), (1, "mask"), 2)
        ('latents', {'mask': 2})
    """
    if not path:
        return tensor
    key, inner = path[0], replace_tensor(_entry(value, path[0]), path[1:], tensor)
    try:
        return _with_entry(value, key, inner)
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"output: expected an entry that can be set, but {key!r} of a {type(value).__name__} cannot ({error}); "
            "name the one that it is made from, or attach before= the module that takes the latents"
        ) from error


def _with_entry(value: Any, key: int | str, inner: Any) -> Any:
    if isinstance(value, tuple):
        if isinstance(key, str):
            return value._replace(**{key: inner})  # pyright: ignore[reportAttributeAccessIssue]
        entries = [inner if index == key % len(value) else entry for index, entry in enumerate(value)]
        return type(value)._make(entries) if hasattr(value, "_make") else type(value)(entries)  # pyright: ignore
    changed = _copied(value)
    if isinstance(value, Mapping) and isinstance(key, int) and key not in value:
        changed[list(value)[key]] = inner
    elif isinstance(key, int) or (isinstance(value, Mapping) and key in value):
        changed[key] = inner
    elif dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        object.__setattr__(changed, key, inner)  # a frozen one, too; its __post_init__ has run
    else:
        setattr(changed, key, inner)
    return changed


def _copied(value: Any) -> Any:
    """A shallow copy; compiled code does not know ``copy.copy`` of what modules return."""
    if type(value) in (dict, list):
        return type(value)(value)
    if not (dataclasses.is_dataclass(value) and torch.compiler.is_compiling()):
        return copy.copy(value)
    if isinstance(value, Mapping):  # as in transformers
        return dataclasses.replace(value)
    changed = object.__new__(type(value))
    for field in dataclasses.fields(value):
        object.__setattr__(changed, field.name, getattr(value, field.name))
    return changed


def _follow(value: Any, path: Sequence[int | str]) -> Any:
    for key in path:
        value = _entry(value, key)
    return value


def _entry(value: Any, key: int | str) -> Any:
    if isinstance(value, Mapping):
        if key in value:
            return value[key]
        return list(value.values())[key] if isinstance(key, int) else getattr(value, key)
    if isinstance(key, int):
        return value[key]
    return getattr(value, key)


def _tensors(value: Any) -> Iterator[tuple[tuple[int | str, ...], Tensor]]:
    """Every floating-point tensor with axes in tuples, lists, mappings and dataclasses, with the way to it."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.ndim > 0:
            yield (), value
        return
    if isinstance(value, Mapping):
        entries = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        entries = list(zip(value._fields, value, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        entries = list(enumerate(value))
    elif dataclasses.is_dataclass(value):
        entries = [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    else:
        return
    for key, entry in entries:
        for path, tensor in _tensors(entry):
            yield (key, *path), tensor


def _told(paths: Sequence[Sequence[int | str]]) -> str:
    shown = [repr(path[0] if len(path) == 1 else tuple(path)) for path in paths[:8]]
    return ", ".join(shown + ["..."] * (len(paths) > 8))
