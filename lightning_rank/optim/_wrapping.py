"""Optimizers that are built around another one, and the param groups that they share with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import LBFGS


def wrapped(optimizer: Any) -> list[Any]:
    """The optimizer and those that it is built around, as SAM and Lookahead are; the outermost first."""
    chain = [optimizer]
    for outer in chain:
        for value in _held(vars(outer)):
            if _is_optimizer(value) and all(value is not known for known in chain):
                chain.append(value)
    return chain


def check_groups_can_be_added(optimizer: Any) -> None:
    """Refuse an optimizer that takes one param group only, or whose groups are not those that are updated.

    Raises:
        ValueError: By kind, without the way out, which depends on who asks.
    """
    kind, chain = type(optimizer).__name__, wrapped(optimizer)
    if any(isinstance(member, LBFGS) for member in chain):
        raise ValueError(f"{kind} takes one param group only")
    if any(member.param_groups is not member.param_groups for member in chain):  # a property that makes a new list
        raise ValueError(f"{kind} does not keep the param groups that it is given")
    groups = [*map(id, optimizer.param_groups)]
    for inner in chain[1:]:
        if [*map(id, inner.param_groups)] != groups:
            raise ValueError(f"{kind} does not share its param groups with the {type(inner).__name__} inside it")
    parameters = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for member in chain[:-1]:
        for name, value in vars(member).items():
            kept = [entry for entry in _held(value) if isinstance(entry, Tensor) and id(entry) not in parameters]
            if (
                name not in ("param_groups", "state")
                and type(value) in (list, tuple)
                and len(kept) == len(parameters) > 1
            ):
                raise ValueError(f"{kind} keeps {name!r}, a tensor for each parameter in the order of the param groups")


@contextmanager
def replaced(instance: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an instance, which may have had its own or that of its class."""
    own = {name: vars(instance)[name]} if name in vars(instance) else {}
    setattr(instance, name, value)
    try:
        yield
    finally:
        delattr(instance, name)
        vars(instance).update(own)


def _held(value: Any) -> Iterator[Any]:
    """What is in an attribute, or in the lists, tuples and dicts there."""
    if type(value) in (list, tuple, dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _held(inner)
    else:
        yield value


def _is_optimizer(value: Any) -> bool:
    return isinstance(getattr(value, "param_groups", None), list) and callable(getattr(value, "step", None))
