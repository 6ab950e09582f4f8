"""Optimizers that are built around another one, and the param groups that they share with it."""

from typing import Any

from torch.optim import LBFGS


def wrapped(optimizer: Any) -> list[Any]:
    """The optimizer and those that it is built around, as SAM and Lookahead are; the outermost first."""
    chain = [optimizer]
    for outer in chain:
        chain += [
            value for value in vars(outer).values() if _is_optimizer(value) and not any(value is c for c in chain)
        ]
    return chain


def check_groups_can_be_added(optimizer: Any) -> None:
    """Refuse an optimizer that takes one param group only, or whose groups are not those that are updated.

    Raises:
        ValueError: By kind, without the way out, which depends on who asks.
    """
    kind, chain = type(optimizer).__name__, wrapped(optimizer)
    if any(isinstance(member, LBFGS) for member in chain):
        raise ValueError(f"{kind} takes one param group only")
    groups = [*map(id, optimizer.param_groups)]
    for inner in chain[1:]:
        if [*map(id, inner.param_groups)] != groups:
            raise ValueError(f"{kind} does not share its param groups with the {type(inner).__name__} inside it")


def _is_optimizer(value: Any) -> bool:
    return isinstance(getattr(value, "param_groups", None), list) and callable(getattr(value, "step", None))
