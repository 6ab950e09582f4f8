"""Schedulers of optimizers that are split: they see the user's groups, and report all rates that are applied."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lightning_rank.optim._layout import PARTNER_KEY, Groups
from lightning_rank.optim._splitting import SplitOptimizer
from lightning_rank.optim.param_groups import MULTIPLIER_KEY

#: What schedulers of torch keep for each group.
_LISTS = ("base_lrs", "min_lrs", "max_lrs", "lr_lambdas", "base_momentums", "max_momentums")


class SplitSchedulers:
    """Has schedulers built and stepped as if their optimizers were not split.

    What they keep for each group, in lists of torch's or of their own, is for the groups that the user made. They
    report the rates that are applied.

    Args:
        optimizers: The split ones; others may be added to the list.
    """

    def __init__(self, optimizers: list[SplitOptimizer]) -> None:
        self._optimizers = optimizers
        self._originals: list[tuple[type, str, Any]] = []  # of the methods that are watched

    def fit(self, scheduler: Any) -> None:
        """Give the lists of a scheduler a value for each group of the user's, and let it report all that there are.

        Args:
            scheduler: Any of ``torch.optim.lr_scheduler``, those that hold others included.
        """
        for inner in getattr(scheduler, "_schedulers", []):
            self.fit(inner)
        split = self._split(getattr(scheduler, "optimizer", None))
        if split is None or not split.linear_groups:
            return
        if not split.tied:
            _stretch(scheduler, split.linear_groups)
            return
        users = split.groups[: -len(split.linear_groups)]
        now = [True] * len(users) + [False] * len(split.linear_groups)
        for name in _LISTS:
            values = getattr(scheduler, name, None)
            if not isinstance(values, list) or not values or len(values) == len(users):
                continue
            # Those of a checkpoint of 0.1 have values for the linear groups, too.
            for layout in (split.saved_layout or [], now):
                if len(values) == len(layout) > len(users):
                    values = [value for value, is_users in zip(values, layout, strict=True) if is_users]
            added = [group["lr"] if name == "base_lrs" else values[-1] for group in users[len(values) :]]
            setattr(scheduler, name, values + added)
        if hasattr(scheduler, "_last_lr"):
            rates = [group["lr"] for group in split.groups]
            scheduler._last_lr = [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile show the user's groups to every scheduler that is built or steps, in this process."""
        self._watch(_with_subclasses(LRScheduler), ("__init__", "step"))
        try:
            yield
        finally:
            while self._originals:
                setattr(*self._originals.pop())

    def watch(self, schedulers: Iterable[Any]) -> None:
        """Watch also classes that have been defined since, and what these schedulers are if not torch's.

        What an object without torch's class does with the groups, it is taken to do in methods that begin with "step".

        Args:
            schedulers: Those of the trainer.
        """
        self._watch(_with_subclasses(LRScheduler), ("__init__", "step"))
        for scheduler in schedulers:
            if not isinstance(scheduler, LRScheduler):
                steps = [name for name in dir(type(scheduler)) if name.startswith("step")]
                self._watch(type(scheduler).__mro__, steps)

    def _watch(self, classes: Iterable[type], names: Iterable[str]) -> None:
        known = {(cls, name) for cls, name, _ in self._originals}
        for cls in classes:
            for name in names:
                original = vars(cls).get(name)
                if inspect.isfunction(original) and (cls, name) not in known:
                    self._originals.append((cls, name, original))
                    setattr(cls, name, self._building(original) if name == "__init__" else self._stepping(original))

    def _split(self, optimizer: Any) -> SplitOptimizer | None:
        """What is known of an optimizer, of one that it wraps or of Lightning's wrapper: they share their groups."""
        groups = getattr(optimizer, "param_groups", None)
        return next((split for split in self._optimizers if split.shows(groups)), None)

    def _building(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def build(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            split = self._split(kwargs.get("optimizer", args[0] if args else None))
            try:
                with split.without_linear_groups() if split and split.tied else nullcontext():
                    original(scheduler, *args, **kwargs)
            except ValueError as error:
                if split is None or not split.linear_groups:
                    raise
                try:  # it may have been given a value for each group there is
                    original(scheduler, *args, **kwargs)
                except ValueError:
                    raise error from None
            self.fit(scheduler)

        return build

    def _stepping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            self.fit(scheduler)
            split = self._split(getattr(scheduler, "optimizer", None))
            with split.without_linear_groups() if split and split.tied else nullcontext():
                result = original(scheduler, *args, **kwargs)
            self.fit(scheduler)
            return result

        return step


def _stretch(scheduler: Any, linear: Groups) -> None:
    """Let a scheduler that was built before the split set the linear groups, too, as it sets their partners."""
    users = len(scheduler.optimizer.param_groups) - len(linear)
    for name in (*_LISTS, "_last_lr"):
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and len(values) == users:
            scaled = name in ("base_lrs", "_last_lr", "min_lrs", "max_lrs")
            parts = [(values[group[PARTNER_KEY]], group[MULTIPLIER_KEY]) for group in linear]
            setattr(scheduler, name, values + [value * factor if scaled else value for value, factor in parts])


def _with_subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(_with_subclasses, cls.__subclasses__()))
