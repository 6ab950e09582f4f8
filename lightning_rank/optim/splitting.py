"""Splitting an optimizer's param groups while it is being built, and tying their learning rates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_rank.optim.param_groups import MULTIPLIER_KEY, LinearGroup


@dataclass(frozen=True)
class Tie:
    """Two param groups of one optimizer, by index: ``lr[linear] = multiplier * lr[base]``."""

    base: int
    linear: int
    multiplier: float
    name: str

    def apply(self, optimizer: Optimizer) -> None:
        """Set the learning rate of the linear group from that of its partner; doing it again changes nothing."""
        base, linear = optimizer.param_groups[self.base], optimizer.param_groups[self.linear]
        lr = base["lr"] * self.multiplier
        if isinstance(linear["lr"], Tensor):
            # The same tensor, for whoever captured it in a CUDA graph.
            linear["lr"].copy_(lr) if isinstance(lr, Tensor) else linear["lr"].fill_(lr)
        else:
            linear["lr"] = float(lr)
        linear[MULTIPLIER_KEY] = self.multiplier


@dataclass
class SplitOptimizer:
    """An optimizer whose groups were split.

    Attributes:
        optimizer: The optimizer.
        ties: Its linear groups, each with its partner.
        taken: The linear parameters that it holds, by ``id``.
    """

    optimizer: Optimizer
    ties: list[Tie] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)


@contextmanager
def splitting(groups: Sequence[LinearGroup]) -> Iterator[list[SplitOptimizer]]:
    """While it lasts, every param group given to an optimizer comes apart into its linear and its other parameters.

    A scheduler built afterwards, but still inside, sees the split groups: the lists that it keeps, one entry a group,
    fit. A group that is linear throughout leaves an empty partner behind, whose learning rate schedulers move.

    Args:
        groups: The linear bottlenecks.

    Yields:
        A list that fills with the optimizers whose groups were split.
    """
    found: list[SplitOptimizer] = []
    add_param_group = Optimizer.add_param_group

    def add_and_split(optimizer: Optimizer, param_group: dict[str, Any]) -> None:
        add_param_group(optimizer, param_group)
        pieces = _split_off(optimizer.param_groups[-1], groups)
        if not pieces:
            return
        split = next((known for known in found if known.optimizer is optimizer), None)
        if split is None:
            split = SplitOptimizer(optimizer)
            found.append(split)
        base = len(optimizer.param_groups) - 1
        for group, piece in pieces:
            optimizer.param_groups.append(piece)
            split.ties.append(Tie(base, len(optimizer.param_groups) - 1, group.multiplier, group.name))
            split.taken.update(map(id, piece["params"]))

    Optimizer.add_param_group = add_and_split  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Optimizer.add_param_group = add_param_group  # type: ignore[method-assign]
    for split in found:
        _name_groups(split)


def _split_off(base: dict[str, Any], groups: Sequence[LinearGroup]) -> list[tuple[LinearGroup, dict[str, Any]]]:
    """Take the linear parameters out of ``base``, into one new group for each bottleneck."""
    params, names = base["params"], base.get("param_names")
    owner = {id(parameter): group for group in groups for parameter in group.params}
    if not any(id(parameter) in owner for parameter in params):
        return []
    if MULTIPLIER_KEY in base:
        raise ValueError(
            "param group: its learning rate is scaled by depth already (depth_scaled_param_groups); use either that "
            "function or the DepthScaledLR callback"
        )
    pieces: list[tuple[LinearGroup, dict[str, Any]]] = []
    for group in groups:
        indices = [index for index, parameter in enumerate(params) if owner.get(id(parameter)) is group]
        if not indices:
            continue
        piece = {**base, "params": [params[i] for i in indices], "lr": base["lr"] * group.multiplier}
        piece[MULTIPLIER_KEY] = group.multiplier
        if names is not None:
            piece["param_names"] = [names[i] for i in indices]
        pieces.append((group, piece))
    rest = [index for index, parameter in enumerate(params) if id(parameter) not in owner]
    base["params"] = [params[i] for i in rest]
    if names is not None:
        base["param_names"] = [names[i] for i in rest]
    return pieces


def _name_groups(split: SplitOptimizer) -> None:
    """Name every group, each differently; those of the user keep their names, or those that Lightning would show."""
    param_groups = split.optimizer.param_groups
    linear = {tie.linear for tie in split.ties}
    users = [index for index in range(len(param_groups)) if index not in linear]
    own = {index for index in users if "name" in param_groups[index]}
    for position, index in enumerate(users, start=1):
        param_groups[index].setdefault("name", "base" if len(users) == 1 else f"pg{position}")
    for tie in split.ties:
        alone = len(users) == 1 and tie.base not in own
        prefix = "" if alone else f"{param_groups[tie.base]['name']}/"
        param_groups[tie.linear]["name"] = prefix + tie.name
