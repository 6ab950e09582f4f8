"""The callback that shows the rank of the latents as training goes on."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_rank import functional
from lightning_rank.callbacks import spectrum_report
from lightning_rank.callbacks.latent_tap import LatentTap
from lightning_rank.callbacks.rank_history import RankHistory
from lightning_rank.callbacks.repeated_samples import evaluation_loaders, valid_samples
from lightning_rank.functional.moments import RESOLUTION
from lightning_rank.nn.submodules import find_submodule

Stage = Literal["validate", "train"]


class EffectiveRankMonitor(Callback):
    r"""Logs ranks of a layer's output over the whole validation split, once a validation epoch.

    The spectrum is exact: the singular values of the centred latents of all rows on all processes, accumulated in
    float64 in :math:`O(\text{dim}^2)` memory. Every process logs the same values, so ``ModelCheckpoint`` and
    ``EarlyStopping`` can watch them.

    ====================== ========================================================================================
    key                    value
    ====================== ========================================================================================
    rank/effective         exp-entropy of the singular values (:func:`~lightning_rank.functional.effective_rank`)
    rank/numerical         directions with a variance above ``variance_rtol`` of the largest
    rank/participation     participation ratio of the variances
    rank/stable            total variance over the largest variance
    rank/gap               position of the largest gap in the spectrum
    rank/samples           rows that went in
    rank/dropped_rows      rows left out for a NaN or an infinity
    rank/weight_effective  exp-entropy of the singular values of the composed matrix, of a :class:`LinearBottleneck`
    ====================== ========================================================================================

    With several layers, in one monitor or several, the keys are ``rank/<layer>/effective`` and so on. Samples that a
    ``DistributedSampler`` repeats to fill up do not count, where a step passes each sample through the layer once, the
    samples along the first axis. Compiled layers are seen, but not under ``fullgraph=True``. The sanity check is not
    logged. ``trainer.validate`` and ``trainer.test`` log the same keys for their split.

    Without validation data, or with ``stage="train"``, training batches are monitored; their rows come from weights
    that change during the epoch. List the monitor before callbacks that run the module themselves at the end of a
    batch, or their rows count too.

    W&B and TensorBoard get a histogram of ``log10`` of the singular values each time and, if matplotlib is installed,
    pictures of the spectrum and of all spectra so far (``rank/spectrum``, ``rank/waterfall``, and the same for the
    composed matrix after ``rank/weight_``). For other loggers the spectra are written to ``rank_spectra/*.csv`` beside
    the checkpoints.

    Args:
        layer: Dotted name of a submodule, or several names. Latents are ``(B, dim)``, ``(B, T, dim)`` or
            ``(B, dim, H, W)``; every position is a row.
        output: Which output of a layer that returns several, by index or key; ``None`` if it returns one tensor.
        stage: ``"validate"``, or ``"train"`` for training batches although there is validation data.
        variance_rtol: Threshold of ``rank/numerical``, relative to the largest variance.
        every_n_epochs: Monitor the last of every so many epochs.
        log_spectrum_every_n_epochs: How often pictures and files are made, and at the end; ``None`` for never.

    Attributes:
        singular_values: Last spectrum by layer: descending standard deviations along the principal directions, float64
            on the CPU, in units of the latents.
        weight_singular_values: Last singular values of the composed matrix by layer, for linear bottlenecks.
        history: A row for each logged epoch of ``fit``, with ``epoch``, ``step`` and the logged keys. Part of the
            checkpoint, as are the spectra: a resumed run continues the curve.

    Raises:
        TypeError: A name is not a string; the layer does not return a real floating-point tensor.
        ValueError: An argument is out of range; no names, or one twice; at the start of a stage, the module has no such
            layer, or another monitor has it; in a batch, the layer returns several tensors and ``output`` does not say
            which, or its width changes.

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
        output: int | str | None = None,
        stage: Stage = "validate",
        variance_rtol: float = 1e-3,
        every_n_epochs: int = 1,
        log_spectrum_every_n_epochs: int | None = 10,
    ) -> None:
        self.layers = [layer] if isinstance(layer, str) else list(layer)
        for name in self.layers:
            if not isinstance(name, str):
                raise TypeError(f"layer: expected the dotted name of a submodule, got {type(name).__name__}")
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layer: expected one or more different names, got {self.layers}")
        if stage not in get_args(Stage):
            raise ValueError(f"stage: expected one of {', '.join(map(repr, get_args(Stage)))}, got {stage!r}")
        functional.numerical_rank(torch.ones(1), variance_rtol=variance_rtol)  # refuses a bad threshold now
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs: expected 1 or more, got {every_n_epochs}")
        if log_spectrum_every_n_epochs is not None and log_spectrum_every_n_epochs < 1:
            raise ValueError(
                f"log_spectrum_every_n_epochs: expected 1 or more, or None, got {log_spectrum_every_n_epochs}"
            )
        self.output = output
        self.stage = stage
        self.variance_rtol = variance_rtol
        self.every_n_epochs = every_n_epochs
        self.log_spectrum_every_n_epochs = log_spectrum_every_n_epochs
        self.singular_values: dict[str, Tensor] = {}
        self.weight_singular_values: dict[str, Tensor] = {}
        self._history = RankHistory()
        self._taps: list[LatentTap] = []
        self._own_keys = len(self.layers) > 1
        self._on_training_batches = False
        self._watching = False
        self._directory: Path | None = None
        self._warned_silent: set[str] = set()

    @property
    def state_key(self) -> str:
        """Two monitors of different layers keep their states apart."""
        return self._generate_state_key(layers=self.layers)

    @property
    def history(self) -> list[dict[str, float]]:
        """A row for each logged epoch of ``fit``."""
        return self._history.rows

    # Hooks on the layers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the hooks, early enough for whoever compiles the module next."""
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        others = [other for other in callbacks if isinstance(other, EffectiveRankMonitor) and other is not self]
        twice = {layer for other in others for layer in other.layers} & set(self.layers)
        if twice:
            raise ValueError(f"layer: expected each layer in one EffectiveRankMonitor only, got {sorted(twice)} in two")
        self._own_keys = len(self.layers) + len(others) > 1
        self._history.forget_restored()
        self._remove_taps()
        if stage != "predict":
            # A layer that configure_model is yet to make is looked for again when the stage starts.
            with suppress(ValueError):
                self._set_taps(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find layers that ``configure_model`` has made since; refuse those that do not exist."""
        self._set_taps(pl_module)
        self._directory = spectrum_report.spectra_directory(trainer)
        if trainer.is_global_zero:
            spectrum_report.define_epoch_axis(trainer.loggers)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same for ``trainer.validate``."""
        self._set_taps(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same for ``trainer.test``."""
        self._set_taps(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was found."""
        self._remove_taps()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was found; Lightning does not call ``teardown`` after an exception."""
        self._remove_taps()

    # Training batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether there is validation data, and go on from the curve of the checkpoint."""
        self._history.adopt_restored()
        unvalidated = not trainer.enable_validation or sum(trainer.num_val_batches) == 0
        self._on_training_batches = self.stage == "train" or unvalidated
        if unvalidated and self.stage != "train":
            rank_zero_info(
                "EffectiveRankMonitor: there is no validation data, so it monitors the training batches; their latents "
                "come from weights that change during the epoch"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        if self._on_training_batches:
            self._begin_epoch(watching=self._epoch_is_due(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take in what comes, save for the samples that fill up a distributed split."""
        if self._on_training_batches:
            self._activate(valid_samples(trainer.train_dataloader, batch_idx))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Gradient checkpointing runs layers again: those rows were counted."""
        self._deactivate()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where a step has several backward passes."""
        if self._on_training_batches:
            self._activate(self._taps[0].valid)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """What runs between batches does not count."""
        self._deactivate()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, where there is no validation."""
        if self._on_training_batches and self._watching:
            self._report(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the last pictures."""
        if self.log_spectrum_every_n_epochs is not None:
            self._send_spectra(trainer)

    # Validation and test batches

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        if not self._on_training_batches or trainer.state.fn != "fit":
            # The sanity check is not logged, but may as well find a layer that returns what it should not.
            self._begin_epoch(
                watching=trainer.state.fn != "fit" or trainer.sanity_checking or self._epoch_is_due(trainer)
            )

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take in what comes, save for the samples that fill up a distributed split."""
        if not self._on_training_batches or trainer.state.fn != "fit":
            self._activate(valid_samples(evaluation_loaders(trainer)[dataloader_idx], batch_idx))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """What runs between batches does not count."""
        self._deactivate()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        if trainer.sanity_checking:
            self._begin_epoch(watching=False)
        elif self._watching and (not self._on_training_batches or trainer.state.fn != "fit"):
            self._report(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin_epoch(watching=True)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take in what comes, save for the samples that fill up a distributed split."""
        self._activate(valid_samples(evaluation_loaders(trainer)[dataloader_idx], batch_idx))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """What runs between batches does not count."""
        self._deactivate()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        self._report(trainer, pl_module)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The curve so far, and its spectra."""
        return self._history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the curve of the checkpoint; only training goes on from it, validating a checkpoint does not."""
        self._history.load_state_dict(state_dict)

    # What the hooks above are made of

    def _set_taps(self, pl_module: nn.Module) -> None:
        if not self._taps:
            found = {layer: find_submodule(pl_module, layer, "layer") for layer in self.layers}
            self._taps = [LatentTap(layer, module, self.output) for layer, module in found.items()]
            # Compiled code does not look whether a module has got a hook since: not even code of an equal module.
            torch.compiler.reset()

    def _remove_taps(self) -> None:
        for tap in self._taps:
            tap.remove()
        self._taps = []

    def _epoch_is_due(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _begin_epoch(self, watching: bool) -> None:
        self._watching = watching
        for tap in self._taps:
            tap.reset()

    def _activate(self, valid: tuple[int, int] | None) -> None:
        for tap in self._taps:
            tap.active, tap.valid = self._watching, valid

    def _deactivate(self) -> None:
        for tap in self._taps:
            tap.active = False

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: dict[str, float] = {}
        spectra: dict[str, Tensor] = {}
        for tap in self._taps:
            prefix = self._prefix(tap.layer)
            for key, value in self._measure(tap, trainer, pl_module).items():
                row[prefix + key] = value
                spectra[prefix] = self.singular_values[tap.layer]
            weight = tap.weight()
            if weight is not None and spectra.get(prefix) is not None:
                values = _singular_values(weight)
                row[prefix + "weight_effective"] = float(functional.effective_rank(values))
                spectra[prefix + "weight_"] = self.weight_singular_values[tap.layer] = values
        self._begin_epoch(watching=False)
        if not row:
            return
        # Equal on all processes; to average them again (sync_dist) costs little and is what Lightning asks for.
        pl_module.log_dict(row, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        if trainer.is_global_zero:
            for prefix, values in spectra.items():
                spectrum_report.log_histogram(trainer, f"{prefix}log10_singular_values", values)
        if trainer.state.fn == "fit":
            self._history.append(trainer.current_epoch, trainer.global_step, row, spectra)
            every = self.log_spectrum_every_n_epochs
            if every is not None and trainer.current_epoch % every == 0:
                self._send_spectra(trainer)

    def _measure(self, tap: LatentTap, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        metric = tap.agreed_metric(trainer.strategy, pl_module.device)
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

    def _prefix(self, layer: str) -> str:
        return f"rank/{layer}/" if self._own_keys else "rank/"

    def _send_spectra(self, trainer: Trainer) -> None:
        titles = {self._prefix(layer): f"latents of {layer}" for layer in self.layers}
        titles |= {f"{self._prefix(layer)}weight_": f"composed matrix of {layer}" for layer in self.layers}
        self._history.send(trainer, titles, self._directory, self.variance_rtol)


def _singular_values(weight: Tensor) -> Tensor:
    """In float64 on the CPU; NaN for a matrix with NaN, which the decomposition would refuse and end the training."""
    if not weight.isfinite().all():
        return torch.full((min(weight.shape),), torch.nan, dtype=torch.float64)
    wide = weight if weight.device.type == "mps" else weight.to(torch.float64)  # MPS has no float64
    return torch.linalg.svdvals(wide).to("cpu", torch.float64)
