"""The callback that trains the linear layers at a learning rate scaled by their depth."""

import functools
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_rank.insertion._participation import expect_gradients
from lightning_rank.nn._submodules import plain_name
from lightning_rank.nn.linear_bottleneck import LinearBottleneck
from lightning_rank.optim._scheduling import SplitSchedulers
from lightning_rank.optim._splitting import SplitOptimizer
from lightning_rank.optim._wrapping import replaced, wrapped
from lightning_rank.optim.param_groups import (
    MULTIPLIER_KEY,
    LinearGroup,
    Multiplier,
    check_multiplier,
    linear_groups,
)
from lightning_rank.optim.response import response_to_learning_rate

#: Half the learning rate moves a layer half as far where the update follows it, else as far: the limit between.
_NO_RESPONSE = 0.75


class DepthScaledLR(Callback):
    r"""Trains every :class:`LinearBottleneck` of the module at a fraction of the learning rate.

    .. math:: \eta_\text{linear} = \eta / N

    so that the speed of the composed map does not depend on the depth ``N`` (see
    :func:`lightning_rank.functional.inverse_depth`). The param groups of the user keep their places, names and options.
    What is linear in one of them becomes a group behind all of the user's, which names that one as its partner
    (``depth_partner``, an index) and follows it: it has the partner's hyper-parameters, and its learning rate is set
    from the partner's after the closure, right before the parameters change. So no scheduler, warm-up by hand, resume,
    learning-rate finder or averaging can part them, and what is written to a group of the user's holds for all that
    the user put there. For other options for the linear layers, give them a group of their own.

    Count groups from the front, since the linear ones are last; ``LearningRateMonitor`` shows them by name (``base``
    and that of the bottleneck). Schedulers may be built before, in or after ``configure_optimizers``. They see the
    groups of the user's, so their lists have a value for each of those, and ``get_last_lr`` tells what is applied to
    all.

    Weight decay keeps its end-to-end strength. Decoupled (AdamW), and coupled under plain SGD, it shrinks each of the
    ``N`` layers by :math:`1 - \eta\lambda/N` a step, so their product by

    .. math:: (1 - \eta\lambda/N)^N = 1 - \eta\lambda + O(\eta^2)

    as a single matrix at :math:`\eta` would be. Coupled under Adam it is part of the gradient that Adam normalizes;
    where decay and loss balance does not depend on a learning rate.

    Optimizers may be built inside ``configure_optimizers`` or earlier, as ``LightningCLI`` does, in every form that
    Lightning accepts, and replaced later. One around another (SAM, Lookahead) is split once if both share their groups;
    what it keeps of parameters it must keep by parameter or in the state, since their places in the groups change.
    Refused, and left as they were, are those that do not share them (``ZeroRedundancyOptimizer``, several optimizers as
    one), and LBFGS, which takes one group only. A few trial steps on copies tell whether the update follows the
    learning rate of a group (:func:`lightning_rank.optim.response_to_learning_rate`): there is a warning where it does
    not (Prodigy, Adafactor with a relative step) or where nothing moves, and a refusal where learning rates that differ
    are an error. An optimizer that holds no bottleneck is left alone.

    A checkpoint of a run without this callback resumes with it, each parameter keeping its optimizer state, and so does
    one of 0.1, which had the linear groups right behind their partners. To resume without it a run that had it, keep it
    with ``multiplier=1.0``: without any, the number of param groups does not fit. A run of another depth resumes where
    the module allows it (``strict_loading = False``): layers that both have keep their state, and the new multiplier
    holds.

    DDP and FSDP2 (``ModelParallelStrategy``) are tested in two processes on the CPU; FSDP works on the same terms with
    ``use_orig_params=True``, which is read off its code and not tested. Flattened parameters and DeepSpeed are refused.

    Args:
        multiplier: ``"inverse_depth"`` for 1/depth of each bottleneck, or one number for all.
        tie: Whether to set the linear learning rates before each step. ``False`` only splits the groups and leaves
            their learning rates to the scheduler.

    Raises:
        TypeError: ``multiplier`` is neither a number nor ``"inverse_depth"``.
        ValueError: ``multiplier`` is not positive and finite; at the start of ``fit``, the module has no
            :class:`LinearBottleneck`.
        RuntimeError: At the start of ``fit``, the groups are those of :func:`depth_scaled_param_groups`.
        MisconfigurationException: At the start of ``fit``, a bottleneck is in none of the optimizers, or one of them
            cannot be given further groups or learning rates.

    Source: Sun et al. 2021 (arXiv 2107.01301), whose abstract names the adjustment; the rule is derived here.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DepthScaledLR()], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self, multiplier: Multiplier = "inverse_depth", tie: bool = True) -> None:
        check_multiplier(multiplier)
        self.multiplier: Multiplier = multiplier
        self.tie = tie
        self._optimizers: list[SplitOptimizer] = []
        self._schedulers: SplitSchedulers | None = None
        self._multipliers: dict[str, float] = {}
        self._restored_multipliers: dict[str, float] = {}
        self._undo = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before ``fit``: have the optimizers split as soon as they are configured."""
        if stage != "fit":
            return
        if type(trainer.strategy).__name__ == "DeepSpeedStrategy":
            raise MisconfigurationException(
                "DepthScaledLR: DeepSpeed builds its own optimizer around the param groups and may set their learning "
                "rates itself, so the ratio cannot be promised. Use ModelParallelStrategy or FSDPStrategy, or, with a "
                "scheduler that only scales learning rates, depth_scaled_param_groups in configure_optimizers"
            )
        self._clean_up()
        self._restored_multipliers = {}
        self._schedulers = schedulers = SplitSchedulers(self._optimizers)
        self._undo.enter_context(schedulers.watching())
        setup_optimizers = trainer.strategy.setup_optimizers

        def setup_and_split(trainer: Trainer) -> None:
            setup_optimizers(trainer)
            schedulers.watch(config.scheduler for config in trainer.lr_scheduler_configs)
            self._check_bottlenecks(trainer, pl_module)
            self._settle(trainer, pl_module)

        self._undo.enter_context(replaced(trainer.strategy, "setup_optimizers", setup_and_split))
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if hasattr(callback, "finetune_function"):
                # It adds groups, keeps account of them, and finds them again by their index from the end.
                in_users_groups = functools.partial(self._in_users_groups, callback.on_train_epoch_start)
                self._undo.enter_context(replaced(callback, "on_train_epoch_start", in_users_groups))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first training batch: split and tie what was restored; warn if its multipliers were others."""
        for name, child in pl_module.named_modules():
            if isinstance(child, LinearBottleneck):
                expect_gradients(child, plain_name(name))
        self._settle(trainer, pl_module)
        restored, now = self._restored_multipliers, self.state_dict()["multipliers"]
        if restored.keys() & now.keys():
            same = all(restored.get(name, multiplier) == multiplier for name, multiplier in now.items())
        else:  # the bottlenecks are elsewhere in the module than they were
            same = not restored or not now or sorted(restored.values()) == sorted(now.values())
        if not same:
            rank_zero_warn(
                f"DepthScaledLR: the checkpoint was trained with the multipliers {restored}; training goes on with "
                f"{now}"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a training epoch: set the linear learning rates for whoever reads them once an epoch."""
        self._settle(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before a training step: set the linear learning rates for whoever reads them before the step."""
        self._settle(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a training step: set the linear learning rates again, after a scheduler that the user stepped."""
        self._settle(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Before an optimizer steps: split it, if it has come since the batch began."""
        self._settle(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After ``fit``, not after a ``validate`` within it: leave trainer, schedulers and hooks as they were found."""
        if stage == "fit":
            self._clean_up()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """When a stage was broken off, for then Lightning does not call ``teardown``: leave all as it was found."""
        self._clean_up()

    def state_dict(self) -> dict[str, Any]:
        """When a checkpoint is saved: the multiplier of each group, by name."""
        groups = [group for split in self._optimizers for group in split.linear_groups]
        now = {group["name"]: group[MULTIPLIER_KEY] for group in groups}
        return {"multipliers": now if self._optimizers else self._multipliers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """When a checkpoint is loaded: remember its multipliers; those that this callback was given hold."""
        self._restored_multipliers = dict(state_dict["multipliers"])

    def _settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Split the optimizers that are new, tie all, and fit their schedulers."""
        if self._schedulers is None:
            return
        for optimizer in trainer.optimizers:
            split = next((split for split in self._optimizers if split.optimizer is optimizer), None)
            if split is None:
                self._optimizers.append(split := self._split(optimizer, pl_module))
            split.come_last()
            split.tie()
        for config in trainer.lr_scheduler_configs:
            self._schedulers.fit(config.scheduler)

    def _split(self, optimizer: Any, pl_module: LightningModule) -> SplitOptimizer:
        kind, linear = type(optimizer).__name__, _linear_groups(pl_module, self.multiplier)
        split = None
        try:
            split = SplitOptimizer(optimizer, linear, self.tie)
            self._undo.callback(split.end)
            scaled = [group for group in split.linear_groups if group[MULTIPLIER_KEY] != 1]
            response = response_to_learning_rate(wrapped(optimizer)[-1], scaled[0]) if scaled else None
        except ValueError as error:
            if split is not None:
                split.take_back()
            raise MisconfigurationException(
                f"DepthScaledLR: {error}, so the linear layers cannot have a learning rate of their own. Leave the "
                "callback out: build the optimizer over depth_scaled_param_groups(self, lr) where it takes several "
                "groups and learning rates, or use another one"
            ) from error
        if response is not None and math.isnan(response):
            rank_zero_warn(
                f"DepthScaledLR: {kind} did not move the linear layers in a trial: it does not update what is in its "
                "param groups, so they will not train, or not at a learning rate of their own"
            )
        elif response is not None and response > _NO_RESPONSE:
            rank_zero_warn(
                f"DepthScaledLR: {kind} does not follow the learning rates of its param groups: at half of it, the "
                f"linear layers moved {response:.2f} times as far in a trial. Scaling it has little or no effect there"
            )
        if split.linear_groups:
            _announce(kind, split.groups)
        return split

    def _check_bottlenecks(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every trainable layer is in an optimizer, if there is one."""
        held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        configured = any(type(optimizer).__name__ != "_MockOptimizer" for optimizer in trainer.optimizers)
        for group in _linear_groups(pl_module, self.multiplier):
            missing = [p for p in group.params if p.requires_grad and id(p) not in held]
            if configured and missing:
                raise MisconfigurationException(
                    f"DepthScaledLR: {len(missing)} of {len(group.params)} layers of {group.name!r} are in no "
                    "optimizer that configure_optimizers returned. Pass them to one, or freeze them "
                    "(requires_grad_(False))"
                )

    def _in_users_groups(self, hook: Callable[..., Any], *args: Any) -> None:
        with ExitStack() as stack:
            for split in self._optimizers:
                stack.enter_context(split.users_groups())
            hook(*args)

    def _clean_up(self) -> None:
        self._multipliers = self.state_dict()["multipliers"]
        self._undo.close()
        self._schedulers = None
        self._optimizers.clear()


def _linear_groups(pl_module: LightningModule, multiplier: Multiplier) -> list[LinearGroup]:
    groups = linear_groups(pl_module, multiplier)
    for group in groups:
        if group.depth > 0 and not group.params:
            raise MisconfigurationException(
                f"DepthScaledLR: the layers of {group.name!r} have no parameters of their own any more: a strategy has "
                "flattened them together with others. Under FSDP, keep them apart with FSDPStrategy(use_orig_params="
                "True), or use ModelParallelStrategy"
            )
    return groups


def _announce(kind: str, groups: list[dict[str, Any]]) -> None:
    width = max(len(str(group["name"])) for group in groups)
    lines = [
        f"  {group['name']!s:<{width}}  {len(group['params']):>5} tensors  lr x {group.get(MULTIPLIER_KEY, 1):g}"
        for group in groups
    ]
    rank_zero_info("\n".join([f"DepthScaledLR: param groups of {kind}", *lines]))
