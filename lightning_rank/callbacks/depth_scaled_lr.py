"""The callback that trains the linear layers at a learning rate scaled by their depth."""

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_rank.optim.param_groups import (
    MULTIPLIER_KEY,
    LinearGroup,
    Multiplier,
    check_multiplier,
    linear_groups,
)
from lightning_rank.optim.splitting import GroupSplitter


class DepthScaledLR(Callback):
    r"""Trains every :class:`LinearBottleneck` of the module at a fraction of the learning rate.

    .. math:: \eta_\text{linear} = \eta / N

    so that the speed of the composed map does not depend on the depth ``N`` (see
    :func:`lightning_rank.functional.inverse_depth`). The param groups are split while ``configure_optimizers`` builds
    the optimizer, so every scheduler counts them right; and before each optimizer step the linear group's learning
    rate is set from its partner's, so that no scheduler, resume, learning-rate finder or averaging can part them.

    The groups are named (``base`` and the name of the bottleneck), which is what ``LearningRateMonitor`` shows; list
    this callback before it.

    Decoupled weight decay (AdamW) shrinks a layer by ``1 - lr * weight_decay`` a step: at ``lr / N`` on each of ``N``
    layers the product shrinks as a single matrix would.

    Args:
        multiplier: ``"inverse_depth"`` for 1/depth of each bottleneck, or one number for all.
        tie: Whether to set the linear learning rates before each step. ``False`` only splits the groups and leaves
            their learning rates to the scheduler.

    Raises:
        TypeError: ``multiplier`` is neither a number nor ``"inverse_depth"``.
        ValueError: ``multiplier`` is not positive and finite; at the start of ``fit``, the module has no
            :class:`LinearBottleneck`.
        MisconfigurationException: At the start of ``fit``, a bottleneck is in none of the optimizers, or the optimizer
            or a scheduler does not accept the split groups.

    Source: Sun et al. 2021 (arXiv 2107.01301), whose abstract names the adjustment; the rule is derived here.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DepthScaledLR()], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self, multiplier: Multiplier = "inverse_depth", tie: bool = True) -> None:
        check_multiplier(multiplier)
        self.multiplier: Multiplier = multiplier
        self.tie = tie
        self._splitter: GroupSplitter | None = None
        self._multipliers: dict[str, float] = {}
        self._restored_multipliers: dict[str, float] = {}
        self._undo: list[Callable[[], Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand in for the module's ``configure_optimizers`` while it fits."""
        if stage != "fit":
            return
        if type(trainer.strategy).__name__ == "DeepSpeedStrategy":
            raise MisconfigurationException(
                "DepthScaledLR: DeepSpeed builds its own optimizer around the param groups and may set their learning "
                "rates itself, so the ratio cannot be promised. Use ModelParallelStrategy or FSDPStrategy, or, with a "
                "scheduler that only scales learning rates, depth_scaled_param_groups in configure_optimizers"
            )
        self._clean_up()
        attributes = vars(pl_module)
        # An instance may have its own, as LightningCLI installs one: it is what must be there again afterwards.
        installed = attributes.get("configure_optimizers")
        original = pl_module.configure_optimizers

        @functools.wraps(original)
        def configure_optimizers() -> Any:
            return self._configure_split(pl_module, original)

        def restore() -> None:
            attributes.pop("configure_optimizers", None)
            if installed is not None:
                attributes["configure_optimizers"] = installed

        pl_module.configure_optimizers = configure_optimizers
        self._undo.append(restore)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over what was restored, and say so if it was trained with other multipliers."""
        if self._splitter is None:
            return
        for config in trainer.lr_scheduler_configs:
            self._splitter.split_per_group_lists(config.scheduler.optimizer, config.scheduler)
        restored, now = self._restored_multipliers, self._splitter.multipliers()
        if any(restored.get(name, multiplier) != multiplier for name, multiplier in now.items()):
            rank_zero_warn(
                f"DepthScaledLR: the checkpoint was trained with the multipliers {restored}; training goes on with "
                f"{now}"
            )
        self._apply_ties()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the ratio right for whoever reads learning rates once an epoch."""
        self._apply_ties()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Have the ratio right for whoever reads learning rates before the step."""
        self._apply_ties()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was found."""
        self._clean_up()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was found; Lightning does not call ``teardown`` after an exception."""
        self._clean_up()

    def state_dict(self) -> dict[str, Any]:
        """The multiplier of each group, by name."""
        return {"multipliers": self._multipliers if self._splitter is None else self._splitter.multipliers()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what the checkpoint was trained with; what this callback was given holds."""
        self._restored_multipliers = dict(state_dict["multipliers"])

    def _configure_split(self, pl_module: LightningModule, configure_optimizers: Callable[[], Any]) -> Any:
        splitter = GroupSplitter(_linear_groups(pl_module, self.multiplier))
        try:
            with splitter.splitting():
                configured = configure_optimizers()
        except ValueError as error:
            split = [optimizer for optimizer in splitter.optimizers if splitter.is_split(optimizer)]
            if not split:
                raise
            raise MisconfigurationException(
                f"DepthScaledLR gives the linear layers a param group of their own, and configure_optimizers then "
                f"raised: {error}. A scheduler that takes a value for each group needs one for each of "
                f"{', '.join(str(len(optimizer.param_groups)) for optimizer in split)} groups, or better one for all "
                "(LambdaLR(optimizer, fn) instead of LambdaLR(optimizer, [fn])); an optimizer that takes one group "
                "only (LBFGS) cannot be used with this callback."
            ) from error
        if configured is not None:
            for group, count in splitter.missing():
                raise MisconfigurationException(
                    f"DepthScaledLR: {count} of {len(group.params)} layers of {group.name!r} are in no optimizer "
                    "that configure_optimizers built. Pass them to one, freeze them (requires_grad_(False)), or, if "
                    "the optimizer was built earlier, build it inside configure_optimizers"
                )
        for optimizer in splitter.optimizers:
            self._undo.append(splitter.watch(optimizer))
            if self.tie:
                self._undo.append(optimizer.register_step_pre_hook(splitter.tie).remove)
        self._splitter = splitter
        _announce(splitter)
        return configured

    def _apply_ties(self) -> None:
        if self.tie and self._splitter is not None:
            for optimizer in self._splitter.optimizers:
                self._splitter.tie(optimizer)

    def _clean_up(self) -> None:
        self._multipliers = self.state_dict()["multipliers"]
        while self._undo:
            self._undo.pop()()
        self._splitter = None


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


def _announce(splitter: GroupSplitter) -> None:
    for optimizer in splitter.optimizers:
        if not splitter.is_split(optimizer):
            continue
        groups = optimizer.param_groups
        width = max(len(group["name"]) for group in groups)
        lines = [
            f"  {group['name']:<{width}}  {len(group['params']):>5} tensors  lr x {group.get(MULTIPLIER_KEY, 1):g}"
            for group in groups
        ]
        rank_zero_info("\n".join([f"DepthScaledLR: param groups of {type(optimizer).__name__}", *lines]))
