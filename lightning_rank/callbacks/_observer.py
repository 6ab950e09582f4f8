"""Layers observed through the stages of a trainer: which rows count, and when they are complete."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_rank.callbacks._samples import agreed_samples, evaluation_loaders, training_loaders
from lightning_rank.callbacks._tap import Batch, LayerTap, home_of_spectra
from lightning_rank.metrics import RowStatistics, synchronize
from lightning_rank.nn._compiled import compiled_frames, look_for_hooks, look_no_more
from lightning_rank.nn._layer_axis import End
from lightning_rank.nn._outputs import select_tensor
from lightning_rank.nn._submodules import find_submodule


class LayerObserver(Callback):
    """Takes in what layers return, or are given, in the steps of a split, and says when the split is complete.

    A split is ``"validate"``, ``"test"``, ``"train"`` (an epoch, or what a subclass makes of it) or ``"sanity"``. A
    subclass says in :meth:`_wants` whether the rows of one that begins are wanted, and gets them in :meth:`_complete`.

    Args:
        layers: Names of the layers.
        at: Whether their output or their input is read.
        output: Which tensor is meant if there are several.
        feature_axis: Axis of the features; ``None`` for that of the layer.
        mask: Where in the batch the mask of the positions that count is, or a function of the batch; ``None`` for all.
        max_rows: At most so many rows of a batch count; ``None`` for all.
        n_examples: How many samples of each split are kept.
    """

    def __init__(
        self,
        layers: Sequence[str],
        *,
        at: End = "output",
        output: Any = None,
        feature_axis: int | None = None,
        mask: Any = None,
        max_rows: int | None = None,
        n_examples: int = 0,
    ) -> None:
        self._layers = list(layers)
        self.at: End = at
        self.output = output
        self.feature_axis = feature_axis
        self.mask = mask
        self.max_rows = max_rows
        self.n_examples = n_examples
        self._taps: list[LayerTap] = []
        self._hooked = False
        self._compiled = 0
        self._taking: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, in another process or not, sets hooks of its own."""
        return self.__dict__ | {"_taps": [], "_hooked": False, "_compiled": 0}

    def _wants(self, trainer: Trainer, split: str) -> bool:
        """Whether rows of a split that begins are to be taken in; asked once, on every process."""
        raise NotImplementedError

    def _complete(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """The rows of a split that was wanted are in."""
        raise NotImplementedError

    def _synchronized(
        self, trainer: Trainer, pl_module: LightningModule, split: str
    ) -> list[dict[int | None, RowStatistics | None]]:
        """What came on all processes: of each layer by dataloader, whose number is ``None`` if there is only one."""
        several = len(evaluation_loaders(trainer)) if split != "train" else 1
        loaders = list(range(several)) if several > 1 else [None]
        places = [(tap, loader) for tap in self._taps for loader in loaders]
        spectra = [tap.spectra.get((split, loader)) for tap, loader in places]
        taken = synchronize(spectra, device=home_of_spectra(pl_module.device))
        rows = [taken[start : start + len(loaders)] for start in range(0, len(taken), len(loaders))]
        return [dict(zip(loaders, row, strict=True)) for row in rows]

    # Hooks on the layers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a stage: set the hooks, early enough for whoever compiles the module next."""
        self._remove_hooks()
        if stage != "predict":
            # A layer that configure_model is yet to make is looked for again when the stage starts.
            with suppress(ValueError):
                self._set_hooks(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When ``fit`` begins, after ``configure_model``: refuse names of layers that do not exist."""
        self._set_hooks(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When a validation begins: refuse names of layers that do not exist, if no ``fit`` has done so."""
        self._set_hooks(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When ``trainer.test`` begins: refuse names of layers that do not exist."""
        self._set_hooks(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After a stage: remove the hooks, so that the module is as it was found."""
        self._remove_hooks()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """When a stage was broken off, for then Lightning does not call ``teardown``: remove the hooks."""
        self._remove_hooks()

    def _set_hooks(self, pl_module: LightningModule) -> None:
        if self._hooked:
            return
        modules = [find_submodule(pl_module, layer, "layer") for layer in self._layers]
        if [tap.module for tap in self._taps] != modules:
            self._taps = [
                LayerTap(layer, self.at, self.output, self.feature_axis, self.max_rows, self.n_examples)
                for layer in self._layers
            ]
            self._compiled = 0
        for tap, module in zip(self._taps, modules, strict=True):
            tap.set(pl_module, module)
        self._hooked = True
        look_for_hooks(self)
        # Compiled code does not look whether a module has got a hook since: not even code of an equal module. But what
        # was compiled while these very hooks were there still calls them.
        if compiled_frames() not in (0, self._compiled):
            torch.compiler.reset()

    def _remove_hooks(self) -> None:
        if self._hooked:
            self._compiled = compiled_frames()
        for tap in self._taps:
            tap.remove()
        self._hooked = False
        look_no_more(self)
        self._taking = set()

    # Training batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first training batch, within an epoch too, of a resumed run: drop old rows, take in new ones."""
        self._begin(trainer, "train")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before a training step: let its rows in, without the samples that fill up a distributed split."""
        if "train" in self._taking:
            valid = agreed_samples(training_loaders(trainer), batch_idx)
            self._take(Batch("train", None, valid, self._masked(batch, batch_idx)))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a backward pass: let nothing in, since who runs the batch again (LBFGS) has no rows of its own."""
        if pl_module.automatic_optimization:
            self._pause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a training step: let nothing in, for what runs between steps does not count."""
        self._pause()

    # Validation and test batches

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch of a validation: drop old rows, take in new ones if this validation is wanted."""
        self._begin(trainer, "sanity" if trainer.sanity_checking else "validate")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch of a test: drop old rows, take in new ones."""
        self._begin(trainer, "test")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before a validation step: let its rows in, without the samples that fill up a distributed split."""
        self._evaluate(trainer, "sanity" if trainer.sanity_checking else "validate", batch, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before a test step: let its rows in, without the samples that fill up a distributed split."""
        self._evaluate(trainer, "test", batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """After a validation step: let nothing in, for what runs between steps does not count."""
        self._pause()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """After a test step: let nothing in, for what runs between steps does not count."""
        self._pause()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last batch of a validation: hand its rows to :meth:`_complete`."""
        self._end(trainer, pl_module, "sanity" if trainer.sanity_checking else "validate")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last batch of a test: hand its rows to :meth:`_complete`."""
        self._end(trainer, pl_module, "test")

    # What the hooks above are made of

    def _begin(self, trainer: Trainer, split: str) -> None:
        self._pause()
        self._taking.discard(split)
        for tap in self._taps:
            tap.clear(split)
        if self._wants(trainer, split):
            self._taking.add(split)

    def _evaluate(self, trainer: Trainer, split: str, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if split in self._taking:
            loaders = evaluation_loaders(trainer)
            valid = agreed_samples(getattr(loaders[dataloader_idx], "flattened", [loaders[dataloader_idx]]), batch_idx)
            loader = dataloader_idx if len(loaders) > 1 else None
            self._take(Batch(split, loader, valid, self._masked(batch, batch_idx)))

    def _end(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        self._pause()
        if split in self._taking:
            self._taking.discard(split)
            # What is kept of it may be written into later, which inference mode forbids.
            with torch.inference_mode(False), torch.no_grad():
                self._complete(trainer, pl_module, split)

    def _masked(self, batch: Any, batch_idx: int) -> Tensor | None:
        if self.mask is None:
            return None
        mask = select_tensor(batch, self.mask, "mask: batch")
        looks = mask.is_floating_point() and (mask.is_cpu or batch_idx == 0)  # for on a device to look is to wait
        if looks and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask: expected 1 where a position counts and 0 elsewhere, got other numbers")
        return mask

    def _take(self, batch: Batch) -> None:
        for tap in self._taps:
            tap.batch, tap.active = batch, True

    def _pause(self) -> None:
        for tap in self._taps:
            tap.active = False
