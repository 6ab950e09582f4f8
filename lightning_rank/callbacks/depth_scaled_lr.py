"""The callback that trains the linear layers at a learning rate scaled by their depth."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_rank.insertion.participation import expect_gradients
from lightning_rank.nn.linear_bottleneck import LinearBottleneck
from lightning_rank.nn.submodules import plain_name
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

    Weight decay keeps its end-to-end strength. Decoupled (AdamW), and coupled under plain SGD, it shrinks each of the
    ``N`` layers by :math:`1 - \eta\lambda/N` a step, so their product by

    .. math:: (1 - \eta\lambda/N)^N = 1 - \eta\lambda + O(\eta^2)

    as a single matrix at :math:`\eta` would be. Coupled under Adam it is part of the gradient that Adam normalizes;
    where decay and loss balance does not depend on a learning rate.

    Optimizers may be built inside ``configure_optimizers`` or earlier, as ``LightningCLI`` does, and in every form that
    Lightning accepts. LBFGS takes one param group only and is refused.

    A checkpoint of a run without this callback resumes with it, each parameter keeping its optimizer state. To resume
    without it a run that had it, keep it with ``multiplier=1.0``: without any, the number of param groups does not
    fit. A run of another depth resumes where the module allows it (``strict_loading = False``): layers that both have
    keep their state, and the new multiplier holds.

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
        self._restored_multipliers = {}
        attributes = vars(pl_module)
        # An instance may have its own, as LightningCLI installs one: it is what must be there again afterwards.
        installed = attributes.get("configure_optimizers")
        original = pl_module.configure_optimizers

        def restore() -> None:
            attributes.pop("configure_optimizers", None)
            if installed is not None:
                attributes["configure_optimizers"] = installed

        pl_module.configure_optimizers = _Interception(
            pl_module, original, functools.partial(self._configure_split, pl_module, original)
        )
        self._undo.append(restore)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over what was built or saved before, and say so if it was trained with other multipliers."""
        for name, child in pl_module.named_modules():
            if isinstance(child, LinearBottleneck):
                expect_gradients(child, plain_name(name))
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
            # Some were built earlier, as LightningCLI does.
            for optimizer in _leaves(configured):
                if isinstance(optimizer, Optimizer):
                    splitter.split_existing(optimizer)
        except ValueError as error:
            sizes = [str(len(known.param_groups)) for known in splitter.optimizers if splitter.is_split(known)]
            if not sizes:
                raise
            raise MisconfigurationException(
                f"DepthScaledLR gives the linear layers a param group of their own, and configure_optimizers then "
                f"raised: {error}. A scheduler that takes a value for each group needs one for each of "
                f"{', '.join(sizes)} groups, or better one for all (LambdaLR(optimizer, fn) instead of "
                "LambdaLR(optimizer, [fn])); an optimizer that takes one group only (LBFGS) cannot be used with this "
                "callback."
            ) from error
        if configured is not None:
            for group, count in splitter.missing():
                raise MisconfigurationException(
                    f"DepthScaledLR: {count} of {len(group.params)} layers of {group.name!r} are in no optimizer "
                    "that configure_optimizers returned. Pass them to one, or freeze them (requires_grad_(False))"
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


class _Interception:
    """Stands in for a module's ``configure_optimizers``; a copy or a pickle of the module gets its own one back."""

    def __init__(self, pl_module: LightningModule, original: Callable[[], Any], call: Callable[[], Any]) -> None:
        functools.update_wrapper(self, original)
        self.pl_module = pl_module
        self.call = call

    def __call__(self) -> Any:
        return self.call()

    def __reduce__(self) -> tuple[Any, ...]:
        # While a copy is being put together its attributes are not there yet, so this is the method of its class.
        return getattr, (self.pl_module, "configure_optimizers")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self.pl_module).configure_optimizers.__get__(memo.get(id(self.pl_module), self.pl_module))


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


def _leaves(configured: Any) -> Iterator[Any]:
    """What ``configure_optimizers`` returned, out of its lists, tuples and dicts."""
    if isinstance(configured, dict):
        configured = list(configured.values())
    if isinstance(configured, list | tuple):
        for item in configured:
            yield from _leaves(item)
    else:
        yield configured


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
