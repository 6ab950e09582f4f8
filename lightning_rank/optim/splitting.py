"""Splitting an optimizer's param groups as it is built, and keeping their learning rates tied.

Every group that a user makes comes apart into what is left of it and, right behind, one group for each linear
bottleneck that has parameters in it. So the partner of a linear group is the nearest group before it that is not
linear, whatever has been restored, rebuilt or added in the meantime.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_rank.optim.param_groups import MULTIPLIER_KEY, LinearGroup


class GroupSplitter:
    """Splits the groups of the optimizers that are built in its presence, and ties their learning rates.

    Args:
        groups: The linear bottlenecks and their multipliers.

    Attributes:
        optimizers: The optimizers seen so far, split or not.
    """

    def __init__(self, groups: Sequence[LinearGroup]) -> None:
        self.groups = groups
        self.optimizers: list[Optimizer] = []
        self._owner = {id(parameter): group for group in groups for parameter in group.params}
        self._given: list[list[list[nn.Parameter]]] = []  # for each optimizer, the groups as the user gave them

    @contextmanager
    def splitting(self) -> Iterator[None]:
        """Split every group that is given to any optimizer meanwhile.

        A scheduler that is built after its optimizer, but still inside, counts the groups as they stay.
        """
        add_param_group = Optimizer.add_param_group

        def add_and_split(optimizer: Optimizer, param_group: dict[str, Any]) -> None:
            add_param_group(optimizer, param_group)
            self._split_last_group(optimizer)

        Optimizer.add_param_group = add_and_split  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            Optimizer.add_param_group = add_param_group
        for optimizer in self.optimizers:
            self._name_groups(optimizer)

    def split_existing(self, optimizer: Optimizer) -> None:
        """Split the groups of an optimizer that was built before; its schedulers' lists are then to be stretched.

        Raises:
            ValueError: The optimizer takes one group only, and would miss the parameters split off.
        """
        if any(optimizer is known for known in self.optimizers):
            return
        if isinstance(optimizer, LBFGS):
            raise ValueError("optimizer: LBFGS takes one param group only, and cannot be used with DepthScaledLR")
        param_groups = optimizer.param_groups[:]
        optimizer.param_groups.clear()
        for group in param_groups:
            optimizer.param_groups.append(group)
            # A group of an earlier split stays behind its partner.
            if MULTIPLIER_KEY not in group:
                self._split_last_group(optimizer)
        self._name_groups(optimizer)

    def watch(self, optimizer: Optimizer) -> Callable[[], None]:
        """From now on split groups that are added later, too, and checkpoints saved before groups were split.

        Returns:
            A function that ends it.
        """
        add_param_group = optimizer.add_param_group

        def add_and_split(param_group: dict[str, Any]) -> None:
            add_param_group(param_group)
            self._split_last_group(optimizer)
            self._name_groups(optimizer)

        optimizer.add_param_group = add_and_split
        handle = optimizer.register_load_state_dict_pre_hook(self._split_state_dict)

        def end() -> None:
            handle.remove()
            vars(optimizer).pop("add_param_group", None)

        return end

    def tie(self, optimizer: Optimizer, *_: Any) -> None:
        """Set the learning rate of each linear group from that of its partner; doing it again changes nothing.

        Its shape is that of a step-pre-hook.
        """
        base: dict[str, Any] = {}
        for group in optimizer.param_groups:
            owner = self._owner_of(group)
            if owner is None:
                base = group
                continue
            lr = base["lr"] * owner.multiplier
            if isinstance(group["lr"], Tensor):
                # The same tensor, for whoever captured it in a CUDA graph.
                group["lr"].copy_(lr) if isinstance(lr, Tensor) else group["lr"].fill_(lr)
            else:
                group["lr"] = float(lr)
            group[MULTIPLIER_KEY] = owner.multiplier

    def is_split(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer holds linear parameters."""
        return any(self._owner_of(group) is not None for group in optimizer.param_groups)

    def multipliers(self) -> dict[str, float]:
        """The multiplier of each linear group, by the name of the group."""
        return {
            group["name"]: owner.multiplier
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            if (owner := self._owner_of(group)) is not None
        }

    def missing(self) -> list[tuple[LinearGroup, int]]:
        """The bottlenecks with trainable parameters that are in no optimizer, and how many those are."""
        held = {id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]}
        counts = [(group, sum(p.requires_grad and id(p) not in held for p in group.params)) for group in self.groups]
        return [(group, count) for group, count in counts if count]

    def split_per_group_lists(self, optimizer: Optimizer, scheduler: Any) -> None:
        """Stretch a scheduler's lists, one entry for each group before they were split, to the groups there are.

        Args:
            optimizer: The optimizer that it schedules.
            scheduler: Any of ``torch.optim.lr_scheduler``, those that hold others included.
        """
        for inner in getattr(scheduler, "_schedulers", []):
            self.split_per_group_lists(optimizer, inner)
        owners = [self._owner_of(group) for group in optimizer.param_groups]
        rates = ("base_lrs", "_last_lr", "min_lrs", "max_lrs")
        for name in (*rates, "base_momentums", "max_momentums", "lr_lambdas"):
            values = getattr(scheduler, name, None)
            if not isinstance(values, list) or len(values) != owners.count(None) or len(values) == len(owners):
                continue
            position, stretched = -1, []
            for owner in owners:
                position += owner is None
                factor = owner.multiplier if owner is not None and name in rates else None
                stretched.append(values[position] if factor is None else values[position] * factor)
            setattr(scheduler, name, stretched)

    def _owner_of(self, group: dict[str, Any]) -> LinearGroup | None:
        return self._owner.get(id(group["params"][0])) if group["params"] else None

    def _split_last_group(self, optimizer: Optimizer) -> None:
        if not any(known is optimizer for known in self.optimizers):
            self.optimizers.append(optimizer)
            self._given.append([])
        base = optimizer.param_groups[-1]
        given, names = base["params"], base.get("param_names")
        owners = [self._owner.get(id(parameter)) for parameter in given]
        linear = [group for group in self.groups if any(owner is group for owner in owners)]
        if linear and MULTIPLIER_KEY in base:
            raise RuntimeError(
                "param group: its learning rate is scaled by depth already (depth_scaled_param_groups); use either "
                "that function or the DepthScaledLR callback"
            )
        self._given[self._position(optimizer)].append(given)
        for group in [None, *linear]:
            indices = [index for index, owner in enumerate(owners) if owner is group]
            piece = base if group is None else {key: value for key, value in base.items() if key != "name"}
            piece["params"] = [given[index] for index in indices]
            if names is not None:
                piece["param_names"] = [names[index] for index in indices]
            if group is not None:
                # Times a number, a tensor gives a new tensor: no two groups share one.
                piece["lr"] = base["lr"] * group.multiplier
                piece[MULTIPLIER_KEY] = group.multiplier
                optimizer.param_groups.append(piece)

    def _position(self, optimizer: Optimizer) -> int:
        return next(index for index, known in enumerate(self.optimizers) if known is optimizer)

    def _name_groups(self, optimizer: Optimizer) -> None:
        """Name the groups that have no name yet; the user's as Lightning would show them."""
        if not self.is_split(optimizer):
            return
        owners = [self._owner_of(group) for group in optimizer.param_groups]
        alone, prefix, position = owners.count(None) == 1, "", 0
        for group, owner in zip(optimizer.param_groups, owners, strict=True):
            if owner is None:
                position += 1
                prefix = "" if alone and "name" not in group else group.get("name", f"pg{position}") + "/"
                group.setdefault("name", "base" if alone else f"pg{position}")
            else:
                group.setdefault("name", prefix + owner.name)

    def _split_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Split the groups of a state dict that was saved without splitting, each parameter keeping its state.

        Also of one saved before the bottleneck was there: its parameters then start without a state.
        """
        given, saved = self._given[self._position(optimizer)], state_dict["param_groups"]
        if len(saved) == len(optimizer.param_groups):
            return self._fit_depth(optimizer, state_dict)
        if len(saved) != len(given):
            return None
        fresh = 1 + max((key for group in saved for key in group["params"]), default=-1)
        position = -1
        groups: list[dict[str, Any]] = []
        keys: dict[int, int] = {}
        for current in optimizer.param_groups:
            owner = self._owner_of(current)
            if owner is None:
                position += 1
                known, saved_keys = given[position], saved[position]["params"]
                if len(saved_keys) < len(known):
                    known = [parameter for parameter in known if id(parameter) not in self._owner]
                if len(saved_keys) != len(known):
                    return None
                keys = {id(parameter): key for parameter, key in zip(known, saved_keys, strict=True)}
            piece = {**saved[position], "name": current["name"], "params": []}
            if owner is not None:
                piece |= {"lr": piece["lr"] * owner.multiplier, MULTIPLIER_KEY: owner.multiplier}
            for parameter in current["params"]:
                if id(parameter) not in keys:
                    keys[id(parameter)], fresh = fresh, fresh + 1
                piece["params"].append(keys[id(parameter)])
            if "param_names" in current:
                piece["param_names"] = current["param_names"]
            groups.append(piece)
        return {**state_dict, "param_groups": groups}

    def _fit_depth(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Fit a split state dict of another depth: layers that both have keep their state, others start without."""
        saved, state = state_dict["param_groups"], dict(state_dict["state"])
        fresh = 1 + max((key for group in saved for key in group["params"]), default=-1)
        groups: list[dict[str, Any]] = []
        for current, group in zip(optimizer.param_groups, saved, strict=True):
            depth, keys = len(current["params"]), group["params"]
            if self._owner_of(current) is not None and len(keys) != depth:
                for key in keys[depth:]:
                    state.pop(key, None)
                keys = [*keys[:depth], *range(fresh, fresh + depth - len(keys))]
                fresh += depth
                group = {key: value for key, value in group.items() if key != "param_names"} | {"params": keys}
            groups.append(group)
        return {**state_dict, "state": state, "param_groups": groups}
