"""The callback that shows the rank of what a layer returns as training goes on."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_rank.callbacks._checks import check_choice, check_every, check_least, check_names
from lightning_rank.callbacks._curve import RankCurve
from lightning_rank.callbacks._due import Every
from lightning_rank.callbacks._history import Measure, Row
from lightning_rank.callbacks._keys import Keys
from lightning_rank.callbacks._loggers import logger_step
from lightning_rank.callbacks._measures import measure_layer
from lightning_rank.callbacks._report import SpectrumReport, send_histograms
from lightning_rank.callbacks._scalars import log_epoch, log_steps
from lightning_rank.callbacks._schedule import ScheduledObserver, Stage
from lightning_rank.functional.rank import VARIANCE_RTOL, check_variance_rtol
from lightning_rank.nn._layer_axis import End
from lightning_rank.nn._outputs import Output

Which = Output | Callable[[Any], Any] | None


class EffectiveRankMonitor(ScheduledObserver):
    r"""Logs ranks of what a layer returns, or is given, over a whole validation split or a window of training steps.

    The spectrum is exact: the singular values of the centred latents of all ``n`` rows on all processes, over
    ``sqrt(n)``, accumulated in float64 in :math:`O(\text{dim}^2)` memory. Every process logs the same values, so
    ``ModelCheckpoint`` and ``EarlyStopping`` can watch them.

    ====================== ========================================================================================
    key                    value
    ====================== ========================================================================================
    rank/effective         exp-entropy of the singular values (:func:`~lightning_rank.functional.effective_rank`)
    rank/numerical         directions with a variance above ``variance_rtol`` of the largest
    rank/participation     participation ratio of the variances
    rank/stable            total variance over the largest variance
    rank/gap               position of the largest gap in the spectrum
    rank/directions_95     directions that hold 95 % of the variance
    rank/alpha             exponent of the power law of the variances (alpha-ReQ)
    rank/rankme            RankMe as published, of the latents as they are (:func:`~lightning_rank.functional.rankme`)
    rank/condition         largest singular value over the smallest; infinite if there are directions without variance
    rank/samples           rows that went in
    rank/dropped_rows      rows left out for a NaN or an infinity
    rank/weight_effective  exp-entropy of the singular values of the composed matrix, of a :class:`LinearBottleneck`
    ====================== ========================================================================================

    These are the keys of validation. Those of ``trainer.test`` begin with ``rank/test/``, those of training batches
    with ``rank/train/``; then come ``name`` and, if ``layer`` is a list, the name of the layer. Where a split has
    several dataloaders, each has keys that end as Lightning has it, ``rank/effective/dataloader_idx_0``.

    Every position of the latents is a row. Samples that a ``DistributedSampler`` repeats to fill up do not count, where
    a step passes each sample through the layer once, the samples along the first axis; nor does what callbacks compute
    with the module between the steps. Compiled layers are seen, but not under ``fullgraph=True``. The sanity check is
    not logged. Without validation data the training epochs are monitored; their rows come from weights that change.

    W&B, TensorBoard and Comet get a histogram of ``log10`` of the spectrum each time and, if matplotlib is installed,
    they and MLflow pictures of the spectrum and of all spectra so far (``rank/spectrum``, ``rank/waterfall``, and the
    same for the composed matrix after ``rank/weight_``). With any logger all spectra of the fit are written to
    ``rank_spectra/*.csv`` beside the checkpoints; these themselves keep some.

    Args:
        layer: Dotted name of a submodule or the unique ending of one, or several names.
        at: ``"output"`` of the layer or ``"input"``.
        output: Which tensor, if there are several: an index, key or attribute, a path of them such as
            ``("hidden_states", -1)``, or a function of all that the layer returns or is given.
        feature_axis: Axis of the features. ``None`` takes that of the layer, axis 1 behind a convolution of any
            dimension; where that is not clear it is refused.
        mask: Where in the batch a mask of the positions that count is found, such as ``"attention_mask"``, or a
            function of the batch; its shape is that of the positions, ``(B, T)``, or the first axes of it.
        max_rows: At most so many rows of a batch count on each process, evenly spread over it; how many did is
            ``rank/samples``. For latents with many positions; ``None`` takes all.
        stage: ``"validate"``, or ``"train"`` for training epochs although there is validation data.
        every_n_epochs: Measure every so many validations, or training epochs. A ``ModelCheckpoint`` or
            ``EarlyStopping`` that watches a rank has the first one at once, and sees the last one in between.
        every_n_train_steps: Measure, too, the rows of the last so many training steps each time, as
            ``trainer.global_step`` counts them, whatever epochs and validations there are. The first ends early if
            somebody watches these ranks and looks before.
        name: Tells monitors apart, as part of the keys.
        variance_rtol: Threshold of ``rank/numerical``, relative to the largest variance.
        log_spectrum_every_n_epochs: Pictures are made each time that so much was measured since the last, the first
            time at once; ``"auto"`` when they take no more than 5 % of the time; and at the end. ``None`` for neither
            pictures nor files.

    Attributes:
        singular_values: Last spectrum by layer: the singular values of the centred latents over ``sqrt(n)``, that is
            their standard deviations along the principal directions
            (:func:`~lightning_rank.functional.principal_deviations`), descending, float64 on the CPU.
            Of several dataloaders by ``<layer>/dataloader_idx_0`` and so on.
        weight_singular_values: Last singular values of the composed matrix by layer, for linear bottlenecks.
        history: A row for each time something was measured in the last ``fit``, with ``epoch``, ``step``, which is
            where loggers have it, and the logged keys. Part of the checkpoint: a resumed run continues the curve.

    Raises:
        TypeError: A name is not a string; the tensor is not of a real floating-point type.
        ValueError: An argument is out of range; no names, or one twice; at the start of a stage, the module has no such
            layer, or another monitor has these keys; in a batch, there are several tensors and ``output`` does not say
            which, their feature axis is not clear, or their width changes.

    Source: effective rank after Roy and Vetterli 2007.

    Example:
        >>> monitor = EffectiveRankMonitor(["encoder", "decoder.0"], variance_rtol=1e-2)
        >>> monitor.layers
        ['encoder', 'decoder.0']
    """

    def __init__(
        self,
        layer: str | Sequence[str] = "linear_bottleneck",
        *,
        at: End = "output",
        output: Which = None,
        feature_axis: int | None = None,
        mask: Which = None,
        max_rows: int | None = None,
        stage: Stage = "validate",
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        name: str | None = None,
        variance_rtol: float = VARIANCE_RTOL,
        log_spectrum_every_n_epochs: Every = "auto",
    ) -> None:
        self.layers = check_names(layer)
        check_choice("at", at, End)
        check_every("log_spectrum_every_n_epochs", log_spectrum_every_n_epochs)
        if name is not None and (
            not str(name).isprintable() or set(str(name)) & set("/ ") or name in ("", "test", "train")
        ):
            raise ValueError(f"name: expected a word without spaces and slashes, not 'test' or 'train', got {name!r}")
        check_variance_rtol(variance_rtol)
        when: Any = {"every_n_epochs": every_n_epochs, "every_n_train_steps": every_n_train_steps}
        if max_rows is not None:
            check_least("max_rows", max_rows, 1, " or None")
        where: Any = {"at": at, "output": output, "feature_axis": feature_axis, "mask": mask, "max_rows": max_rows}
        super().__init__(self.layers, stage=stage, **when, **where)
        self.name = name
        self.variance_rtol = variance_rtol
        self.log_spectrum_every_n_epochs: Every = log_spectrum_every_n_epochs
        self._listed = len(self.layers) == 1 and not isinstance(layer, str)
        self._keys = Keys(self.layers, not isinstance(layer, str), name, "latents" if at == "output" else "input")
        self._curve = RankCurve(self.layers, self._keys)
        self._report: SpectrumReport | None = None

    @property
    def state_key(self) -> str:
        """Two monitors keep their states apart."""
        own: dict[str, Any] = {"name": self.name, "input": self.at == "input", "listed": self._listed}
        return self._generate_state_key(layers=self.layers, **{key: value for key, value in own.items() if value})

    @property
    def history(self) -> list[dict[str, float]]:
        """A row for each time something was measured in the last ``fit``."""
        return self._curve.rows()

    @property
    def singular_values(self) -> dict[str, Tensor]:
        """Last spectrum by layer, the singular values of the centred latents over ``sqrt(n)``."""
        return self._curve.spectra

    @property
    def weight_singular_values(self) -> dict[str, Tensor]:
        """Last singular values of the composed matrix by layer."""
        return self._curve.weight_spectra

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a stage: refuse keys that another monitor has; for a new ``fit``, empty the history."""
        for other in self._others(trainer):
            twice = sorted(self._keys.prefixes & other.prefixes)
            if twice:
                raise ValueError(
                    f"name: expected keys of its own for each EffectiveRankMonitor, got {twice[0]}... in two; pass "
                    "name='...' to one of them, or layer=[...], which puts the layer's name into the keys"
                )
        self._curve.set_up(trainer, stage)
        super().setup(trainer, pl_module, stage)

    def _others(self, trainer: Trainer) -> list[Keys]:
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        return [c._keys for c in callbacks if isinstance(c, EffectiveRankMonitor) and c is not self]

    def _next_validation(self) -> int:
        self._curve.history.validations += 1
        return self._curve.history.validations

    def _awaited(self, trainer: Trainer, split: str) -> bool:
        """Whether a rank is watched and there is none yet, for which whoever watches it would raise."""
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        watched = [str(getattr(other, "monitor", None)) for other in (*callbacks, *trainer.lr_scheduler_configs)]
        return split not in self._curve.measured and split in map(self._keys.split, watched)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first training batch: take over the curve of a loaded checkpoint; open the report."""
        self._curve.start()
        every, rows = self.log_spectrum_every_n_epochs, self._curve.history.rows
        last_step, others = rows[-1].step if rows else None, self._others(trainer)
        self._report = SpectrumReport(trainer, every, last_step, self._keys, others, self.variance_rtol)
        super().on_train_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After training: make the last pictures; warn if nothing was measured."""
        if self._report is not None:
            self._report.finish(trainer, self._curve.history)
        if not self._curve.measured and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            self._say_nothing_came()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After a stage: remove the hooks, and send home what was found out, if this process was launched."""
        super().teardown(trainer, pl_module, stage)
        self._curve.leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """When a stage was broken off: remove the hooks, and write the rows that are not yet in files."""
        super().on_exception(trainer, pl_module, exception)
        if self._report is not None:
            self._report.flush()

    def _complete(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if split == "sanity":  # it may have found a layer that returns what it should not
            return
        values: dict[Measure, float] = {}
        spectra: dict[Measure, Tensor] = {}
        for tap, of_loaders in zip(self._taps, self._synchronized(trainer, pl_module, split), strict=True):
            if any(of_loaders.values()):
                measure_layer(tap, split, of_loaders, self.variance_rtol, values, spectra)
            else:
                self._say_silent(tap.layer, split)
            tap.clear(split)
        if values:
            self._log(trainer, pl_module, split, values, spectra)

    def _log(
        self, trainer: Trainer, pl_module: LightningModule, split: str, values: dict[Measure, float], spectra: Any
    ) -> None:
        row = {self._keys.key(of): value for of, value in values.items()}
        windows = split == "train" and self.every_n_train_steps is not None
        (log_steps if windows else log_epoch)(pl_module, row)
        step = logger_step(trainer, epoch_ended=split == "train" and not windows)
        self._curve.show(spectra)
        send_histograms(trainer, spectra, self._keys, step)
        if trainer.state.fn == "fit" and self._report is not None:
            self._curve.append(Row(trainer.current_epoch, step, values), spectra)
            self._report.add(trainer, self._curve.history, spectra, step)

    def state_dict(self) -> dict[str, Any]:
        """When a checkpoint is saved: the curve so far, and some of its spectra."""
        return self._curve.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """When a checkpoint is loaded: keep its curve until training starts; ``validate`` does not go on from it."""
        self._curve.load_state_dict(state_dict)
