"""The callback that shows the rank of the latents as training goes on."""

import importlib.util
from collections.abc import Sequence, Sized
from contextlib import suppress
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lightning_rank import functional
from lightning_rank.callbacks.latent_tap import LatentTap
from lightning_rank.callbacks.spectrum_picture import send_picture, spectrum_figure
from lightning_rank.functional.moments import RESOLUTION
from lightning_rank.nn.submodules import find_submodule


class EffectiveRankMonitor(Callback):
    r"""Logs ranks of a layer's output over the whole validation split, once a validation epoch.

    The spectrum is exact: the singular values of the centred latents of all rows on all processes, accumulated in
    float64 in :math:`O(\text{dim}^2)` memory. Every process logs the same values, so ``ModelCheckpoint`` and
    ``EarlyStopping`` can watch them.

    ==================== ==========================================================================================
    key                  value
    ==================== ==========================================================================================
    rank/effective       exp-entropy of the singular values (:func:`~lightning_rank.functional.effective_rank`)
    rank/numerical       directions with a variance above ``variance_rtol`` of the largest
    rank/participation   participation ratio of the variances
    rank/stable          total variance over the largest variance
    rank/gap             position of the largest gap in the spectrum
    rank/samples         rows that went in
    rank/dropped_rows    rows left out for a NaN or an infinity
    ==================== ==========================================================================================

    With several layers, in one monitor or several, the keys are ``rank/<layer>/effective`` and so on. Samples that a
    ``DistributedSampler`` repeats to fill up do not count, where a step passes each sample through the layer once, the
    samples along the first axis. Compiled layers are seen, but not under ``fullgraph=True``.

    Without validation data training batches are monitored, whose rows come from weights that change during the epoch;
    that is said once. The sanity check is not logged. A spectrum plot goes to W&B and TensorBoard loggers if matplotlib
    is installed. List the monitor before callbacks that run the module themselves at the end of a batch, or their rows
    count too.

    Args:
        layer: Dotted name of a submodule that returns one tensor, or several names. Latents are ``(B, dim)``,
            ``(B, T, dim)`` or ``(B, dim, H, W)``; every position is a row.
        variance_rtol: Threshold of ``rank/numerical``, relative to the largest variance.
        log_spectrum_every_n_epochs: How often the plot is sent; ``None`` for never.

    Attributes:
        singular_values: Last spectrum by layer: descending standard deviations along the principal directions, float64
            on the CPU, in units of the latents.
        history: A row for each logged epoch of ``fit``, with ``epoch``, ``step`` and the logged keys; part of the
            checkpoint.

    Raises:
        TypeError: A name is not a string; the layer does not return a real floating-point tensor.
        ValueError: ``variance_rtol`` not in [0, 1); ``log_spectrum_every_n_epochs`` below 1; no names, or one twice;
            at the start of a stage, the module has no such layer.

    Source: effective rank after Roy and Vetterli 2007.

    Example:
        >>> monitor = EffectiveRankMonitor(["encoder", "linear_bottleneck"], variance_rtol=1e-2)
        >>> monitor.layers
        ['encoder', 'linear_bottleneck']
    """

    def __init__(
        self,
        layer: str | Sequence[str] = "linear_bottleneck",
        *,
        variance_rtol: float = 1e-3,
        log_spectrum_every_n_epochs: int | None = 10,
    ) -> None:
        self.layers = [layer] if isinstance(layer, str) else list(layer)
        for name in self.layers:
            if not isinstance(name, str):
                raise TypeError(f"layer: expected the dotted name of a submodule, got {type(name).__name__}")
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layer: expected one or more different names, got {self.layers}")
        functional.numerical_rank(torch.ones(1), variance_rtol=variance_rtol)  # refuses a bad threshold now
        if log_spectrum_every_n_epochs is not None and log_spectrum_every_n_epochs < 1:
            raise ValueError(
                f"log_spectrum_every_n_epochs: expected 1 or more, or None, got {log_spectrum_every_n_epochs}"
            )
        self.variance_rtol = variance_rtol
        self.log_spectrum_every_n_epochs = log_spectrum_every_n_epochs
        self.singular_values: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self._restored_history: list[dict[str, float]] | None = None
        self._taps: list[LatentTap] = []
        self._own_keys = len(self.layers) > 1
        self._on_training_batches = False
        self._warned_silent: set[str] = set()

    @property
    def state_key(self) -> str:
        """Two monitors of different layers keep their states apart."""
        return self._generate_state_key(layers=self.layers)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the hooks, early enough for whoever compiles the module next."""
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        others = [other for other in callbacks if isinstance(other, EffectiveRankMonitor) and other is not self]
        twice = {layer for other in others for layer in other.layers} & set(self.layers)
        if twice:
            raise ValueError(f"layer: expected each layer in one EffectiveRankMonitor only, got {sorted(twice)} in two")
        self._own_keys = len(self.layers) + len(others) > 1
        self._restored_history = None
        self._remove_taps()
        if stage in ("fit", "validate"):
            # A layer that configure_model is yet to make is looked for again when the stage starts.
            with suppress(ValueError):
                self._set_taps(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find layers that ``configure_model`` has made since; refuse those that do not exist."""
        self._set_taps(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same for ``trainer.validate``."""
        self._set_taps(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether there is validation data, and go on from the curve of the checkpoint."""
        if self._restored_history is not None:
            self.history, self._restored_history = self._restored_history, None
        self._on_training_batches = not trainer.enable_validation or sum(trainer.num_val_batches) == 0
        if self._on_training_batches:
            rank_zero_info(
                "EffectiveRankMonitor: there is no validation data, so it monitors the training batches; their latents "
                "come from weights that change during the epoch"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        if self._on_training_batches:
            self._begin_epoch()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take in what comes, save for the samples that fill up a distributed split."""
        self._activate(self._on_training_batches, _valid_samples(trainer.train_dataloader, batch_idx))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Gradient checkpointing runs layers again: those rows were counted."""
        for tap in self._taps:
            tap.active = False

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where a step has several backward passes."""
        if trainer.training:
            self._activate(self._on_training_batches, self._taps[0].valid if self._taps else None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """What runs between batches does not count."""
        self._activate(False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, where there is no validation."""
        if self._on_training_batches:
            self._report(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin_epoch()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take in what comes, save for the samples that fill up a distributed split."""
        valid = _valid_samples(_validation_loaders(trainer)[dataloader_idx], batch_idx)
        self._activate(True, valid)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """What runs between batches does not count."""
        self._activate(False)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        if trainer.sanity_checking:
            self._begin_epoch()
        else:
            self._report(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was found."""
        self._remove_taps()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was found; Lightning does not call ``teardown`` after an exception."""
        self._remove_taps()

    def state_dict(self) -> dict[str, Any]:
        """The curve so far."""
        history = self.history if self._restored_history is None else self._restored_history
        return {"history": [dict(row) for row in history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the curve of the checkpoint; only training goes on from it, validating a checkpoint does not."""
        self._restored_history = [dict(row) for row in state_dict["history"]]

    def _set_taps(self, pl_module: nn.Module) -> None:
        if not self._taps:
            found = {layer: find_submodule(pl_module, layer, "layer") for layer in self.layers}
            self._taps = [LatentTap(layer, module) for layer, module in found.items()]
            # Compiled code does not look whether a module has got a hook since: not even code of an equal module.
            torch.compiler.reset()

    def _remove_taps(self) -> None:
        for tap in self._taps:
            tap.remove()
        self._taps = []

    def _begin_epoch(self) -> None:
        for tap in self._taps:
            tap.active, tap.metric = False, None

    def _activate(self, active: bool, valid: tuple[int, int] | None = None) -> None:
        for tap in self._taps:
            tap.active, tap.valid = active, valid

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: dict[str, float] = {}
        for tap in self._taps:
            prefix = f"rank/{tap.layer}" if self._own_keys else "rank"
            row |= {f"{prefix}/{key}": value for key, value in self._measure(tap, trainer, pl_module).items()}
            if tap.layer in self.singular_values and self._picture_is_due(trainer):
                self._send_picture(trainer, prefix, tap.layer)
        self._begin_epoch()
        # Equal on all processes; to average them again (sync_dist) costs little and is what Lightning asks for.
        pl_module.log_dict(row, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        if trainer.state.fn == "fit" and row:
            self.history.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **row})

    def _measure(self, tap: LatentTap, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        metric = tap.metric
        if trainer.world_size > 1:
            # A process that saw no rows does not know the width, yet has to take part.
            dim = torch.tensor(0 if metric is None else metric.dim, device=pl_module.device)
            dim = int(trainer.strategy.reduce(dim, reduce_op="max"))
            if metric is None and dim > 0:
                metric = tap.new_metric(dim, pl_module.device)
        if metric is None:
            if tap.layer not in self._warned_silent:
                self._warned_silent.add(tap.layer)
                rank_zero_warn(
                    f"EffectiveRankMonitor: layer {tap.layer!r} was not called in this epoch (its forward alone is not "
                    "a call), so there is no rank to log"
                )
            return {}
        with torch.inference_mode(False), torch.no_grad(), metric.sync_context():
            singular_values = metric.singular_values().cpu().clone()
            samples, dropped = float(metric.samples), float(metric.dropped_rows)
        self.singular_values[tap.layer] = singular_values
        return {
            "effective": float(functional.effective_rank(singular_values)),
            "numerical": float(functional.numerical_rank(singular_values, variance_rtol=self.variance_rtol)),
            "participation": float(functional.participation_ratio(singular_values)),
            "stable": float(functional.stable_rank(singular_values)),
            "gap": float(functional.spectral_gap(singular_values, rtol=RESOLUTION)),
            "samples": samples,
            "dropped_rows": dropped,
        }

    def _picture_is_due(self, trainer: Trainer) -> bool:
        every = self.log_spectrum_every_n_epochs
        if every is None or not trainer.is_global_zero or importlib.util.find_spec("matplotlib") is None:
            return False
        epoch = trainer.current_epoch
        return epoch % every == 0 or epoch + 1 == trainer.max_epochs

    def _send_picture(self, trainer: Trainer, prefix: str, layer: str) -> None:
        singular_values = self.singular_values[layer]
        rank = int(functional.numerical_rank(singular_values, variance_rtol=self.variance_rtol))
        figure = spectrum_figure(singular_values, f"{layer}, epoch {trainer.current_epoch}", rank)
        send_picture(trainer.loggers, f"{prefix}/spectrum", figure, trainer.global_step)


def _validation_loaders(trainer: Trainer) -> list[Any]:
    # trainer.val_dataloaders would give those of an earlier fit while validating.
    loop = trainer.validate_loop if trainer.state.fn == "validate" else trainer.fit_loop.epoch_loop.val_loop
    return loop._combined_loader.flattened if loop._combined_loader is not None else []


def _valid_samples(loader: Any, batch_idx: int) -> tuple[int, int] | None:
    """``(batch, valid)`` if the last samples of this process's batch repeat some that another process has.

    A distributed sampler fills its list of indices up from the start and hands it out round robin, so process ``k`` of
    ``world`` has ``len(range(k, n, world))`` samples of its own, and the repeated ones come last.
    """
    sampler = getattr(loader, "sampler", None)
    batch_size = getattr(loader, "batch_size", None)
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler) or batch_size is None:
        return None
    if sampler.drop_last:
        return None
    start = batch_idx * batch_size
    batch = min(batch_size, sampler.num_samples - start)
    own = len(range(sampler.rank, len(cast(Sized, sampler.dataset)), sampler.num_replicas))
    valid = max(0, min(batch, own - start))
    return (batch, valid) if valid < batch else None
