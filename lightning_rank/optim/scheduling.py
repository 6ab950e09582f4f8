"""Schedulers of optimizers that are split: their lists, with a value for each group, and the rates that they report."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lightning_rank.optim.layout import PARTNER_KEY, times
from lightning_rank.optim.param_groups import MULTIPLIER_KEY
from lightning_rank.optim.splitting import SplitOptimizer

_REPORTED = ("base_lrs", "_last_lr")
_RATES = (*_REPORTED, "min_lrs", "max_lrs")
_LISTS = (*_RATES, "lr_lambdas", "base_momentums", "max_momentums")


class SplitSchedulers:
    """Keeps schedulers right whose optimizers have other groups than the user made.

    A scheduler may be built before its optimizer is split or afterwards, with a value for each group of the user's or
    for each that there is. It reports the rates that are applied.

    Args:
        optimizers: The split ones; others may be added to the list.
    """

    def __init__(self, optimizers: list[SplitOptimizer]) -> None:
        self._optimizers = optimizers
        # Of the groups that the lists of a scheduler have values for, which are the user's.
        self._layouts: WeakKeyDictionary[Any, list[bool]] = WeakKeyDictionary()

    def fit(self, scheduler: Any, restored: bool = False) -> None:
        """Give the lists of a scheduler a value for each group there is.

        Args:
            scheduler: Any of ``torch.optim.lr_scheduler``, those that hold others included.
            restored: Whether its lists come from a checkpoint, as the groups of its optimizer do.
        """
        for inner in getattr(scheduler, "_schedulers", []):
            self.fit(inner, restored)
        split = self._split(getattr(scheduler, "optimizer", None))
        if split is None:
            return
        users = [group for group in split.groups if PARTNER_KEY not in group]
        now = [True] * len(users) + [False] * len(split.linear_groups)
        known, self._layouts[scheduler] = self._layouts.get(scheduler, [True] * len(users)), now
        for name in _LISTS:
            values = getattr(scheduler, name, None)
            layout = (restored and name != "lr_lambdas" and split.saved_layout) or known  # functions are not saved
            if (layout == now and not restored) or not isinstance(values, list) or len(values) != len(layout):
                continue
            values = [value for value, is_users in zip(values, layout, strict=True) if is_users]
            for group in users[len(values) :]:
                values.append(group["lr"] if name in _REPORTED else values[-1])
            for group in split.linear_groups:
                value = values[group[PARTNER_KEY]]
                values.append(times(value, group[MULTIPLIER_KEY]) if name in _RATES else value)
            setattr(scheduler, name, values)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile fit every scheduler that is built or steps, in this process."""
        methods = {"__init__": self._building, "step": self._stepping}
        originals = [
            (cls, name, vars(cls)[name])
            for cls in _with_subclasses(LRScheduler)
            for name in methods
            if name in vars(cls)
        ]
        for cls, name, original in originals:
            setattr(cls, name, methods[name](original))
        try:
            yield
        finally:
            for cls, name, original in originals:
                setattr(cls, name, original)

    def _split(self, optimizer: Any) -> SplitOptimizer | None:
        """What is known of an optimizer, of one that it wraps or of Lightning's wrapper: they share their groups."""
        groups = getattr(optimizer, "param_groups", None)
        return next((split for split in self._optimizers if split.groups is groups), None)

    def _building(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def build(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            try:
                original(scheduler, *args, **kwargs)
            except ValueError:
                split = self._split(kwargs.get("optimizer", args[0] if args else None))
                if split is None or not split.linear_groups:
                    raise
                # It may have been given a value for each group of the user's.
                with split.users_groups():
                    original(scheduler, *args, **kwargs)
                    self.fit(scheduler)
            self.fit(scheduler)

        return build

    def _stepping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            self.fit(scheduler)
            result = original(scheduler, *args, **kwargs)
            split = self._split(getattr(scheduler, "optimizer", None))
            if split is not None and hasattr(scheduler, "_last_lr"):
                split.tie()
                rates = [group["lr"] for group in split.groups]
                scheduler._last_lr = [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]
            return result

        return step


def _with_subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(_with_subclasses, cls.__subclasses__()))
