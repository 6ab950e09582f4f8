"""The callback that shows what the leading directions of the latents mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import reduce
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_rank.callbacks._checks import check_every, check_least
from lightning_rank.callbacks._due import Due, Every
from lightning_rank.callbacks._files import files_directory, write_picture, writes_files
from lightning_rank.callbacks._loggers import all_take_pictures, logger_step, send_picture
from lightning_rank.callbacks._observer import LayerObserver
from lightning_rank.callbacks._samples import no_validation
from lightning_rank.functional import Moments, merge_moments
from lightning_rank.nn._outputs import Output
from lightning_rank.nn._submodules import find_submodule
from lightning_rank.traversal import image_grid, interpolate_latents, traverse_principal_directions


class LatentTraversal(LayerObserver):
    """Draws what the decoder makes of latents along their leading principal directions.

    A row of the picture is a direction, in falling variance, from -2 to +2 standard deviations around the mean of the
    latents of the whole validation split, on all processes; in a direction that the latents do not use nothing changes.
    Of latents ``(B, T, dim)`` or ``(B, dim, H, W)`` every position is a row that counts, and all positions move alike.
    The last row, set apart, leads from the first to the second input of the split whose latents are finite, on a
    straight line between them.

    W&B, TensorBoard, MLflow and Comet get the picture as ``traversal/<layer>``. For other loggers, and without one, it
    is written to ``latent_traversals/<layer>-epoch=...-step=....png`` beside the checkpoints. It is drawn in some
    validations, by ``trainer.validate``, and at the end of training of the last validation, if that was not drawn, by
    the decoder as it is then. What does not work is found in the sanity check, in which one latent is decoded.

    The decoder runs on every process, so that a sharded one works, in the mode and precision of validation, a row of
    ``steps`` latents at a time. Random states are put back.

    Args:
        layer: Dotted name of the submodule whose output the decoder takes, or of one inside the decoder, whose input is
            then meant and has to be the decoder's own: a bottleneck attached ``before="decoder"``.
        output: Which tensor of several that the layer returns: an index, key, attribute, a path of them, or a
            function.
        feature_axis: Axis of the features; ``None`` for that of the layer.
        decoder: Dotted name of the decoder. It returns images ``(B, C, H, W)`` of 1 or 3 channels in [0, 1], what is
            outside being clamped, or vectors; for anything else override :meth:`to_images`.
        image_shape: ``(C, H, W)``, if the decoder returns vectors.
        n_directions: How many directions, at most the width of the latents.
        steps: How many images a row.
        every_n_epochs: Draw the last of every so many validations; ``"auto"`` those since whose last picture twenty
            times as long has passed as it took; ``None`` none but that at the end.

    Attributes:
        picture: The last picture, uint8, shape ``(C, height, width)``, on the CPU; ``None`` before the first.

    Raises:
        ModuleNotFoundError: At the start of a stage, Pillow is not installed.
        TypeError: A name is not a string; the layer does not return a real floating-point tensor.
        ValueError: An argument is out of range; at the start of a stage, the module has no such layer or decoder; in
            the sanity check, the layer returns several tensors and ``output`` does not say which, the decoder does
            something to the latents before it gives them to a layer inside, or it returns what is no image.

    Source: traversals along axes of the latents as in Higgins et al. 2017 (beta-VAE), here along principal directions.

    Example:
        >>> class Logits(LatentTraversal):
        ...     def to_images(self, decoded):
        ...         return super().to_images(decoded.sigmoid())
        >>> Logits("encoder", image_shape=(1, 28, 28)).to_images(torch.zeros(9, 784)).shape
        torch.Size([9, 1, 28, 28])
    """

    def __init__(
        self,
        layer: str = "linear_bottleneck",
        *,
        output: Output | Callable[[Any], Any] | None = None,
        feature_axis: int | None = None,
        decoder: str = "decoder",
        image_shape: Sequence[int] | None = None,
        n_directions: int = 8,
        steps: int = 9,
        every_n_epochs: Every = "auto",
    ) -> None:
        for name, value in (("layer", layer), ("decoder", decoder)):
            if not isinstance(value, str):
                raise TypeError(f"{name}: expected the dotted name of a submodule, got {type(value).__name__}")
        check_least("n_directions", n_directions, 1)
        check_least("steps", steps, 2)
        check_every("every_n_epochs", every_n_epochs)
        if image_shape is not None and (len(image_shape) != 3 or image_shape[0] not in (1, 3) or min(image_shape) < 1):
            raise ValueError(f"image_shape: expected (C, H, W) with 1 or 3 channels, got {tuple(image_shape)}")
        super().__init__([layer], output=output, feature_axis=feature_axis, n_examples=2)
        self.layer = layer
        self.decoder = decoder
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.n_directions = n_directions
        self.steps = steps
        self.every_n_epochs: Every = every_n_epochs
        self.picture: Tensor | None = None
        self._undrawn: tuple[int, int] | None = None  # epoch and step
        self._due = Due(every_n_epochs, at_once=False)
        self._warned_silent = False

    def to_images(self, decoded: Any) -> Tensor:
        """The decoder's output as images ``(B, C, H, W)`` in [0, 1]; override it for logits, tuples and the like."""
        fits = isinstance(decoded, Tensor) and decoded.shape[1:].numel() == math.prod(self.image_shape or ())
        return decoded.reshape(-1, *self.image_shape) if self.image_shape and fits else decoded

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a stage: refuse to go on without Pillow; forget what was drawn; set the hook on the layer."""
        if find_spec("PIL") is None:
            raise ModuleNotFoundError(
                "LatentTraversal: pictures are made by Pillow, which is missing: pip install 'lightning-rank[plots]'"
            )
        self._undrawn, self._due = None, Due(self.every_n_epochs, at_once=False)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first training batch: warn if there is no validation data, hence no picture."""
        super().on_train_start(trainer, pl_module)
        if no_validation(trainer):
            rank_zero_warn("LatentTraversal: there is no validation data, so it draws nothing")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After training: draw the last validation, if it was not drawn."""
        if self._undrawn is not None:
            modes = [(part, part.training) for part in pl_module.modules()]
            pl_module.eval()
            self._draw(trainer, pl_module)
            for part, mode in modes:
                part.training = mode

    def _set_hooks(self, pl_module: LightningModule) -> None:
        decoder = find_submodule(pl_module, self.decoder, "decoder")
        layer = find_submodule(pl_module, self.layer, "layer")
        # A bottleneck in front of the decoder is part of it: the latents are what goes into that.
        self.at = "input" if any(child is layer for child in decoder.modules()) else "output"
        super()._set_hooks(pl_module)

    def _wants(self, trainer: Trainer, split: str) -> bool:
        return split in ("validate", "sanity")

    def _complete(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if split == "sanity":
            self._images(trainer, pl_module, split, self._mean)
            return
        self._undrawn = trainer.current_epoch, logger_step(trainer)
        # Drawing takes all processes, whose clocks differ.
        if trainer.state.fn != "fit" or trainer.strategy.broadcast(self._due.now()):
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the picture, the same on every process, and send it."""
        assert self._undrawn is not None
        (epoch, step), self._undrawn = self._undrawn, None
        directory = files_directory(trainer, "latent_traversals")
        with self._due.drawing():
            grids = self._images(trainer, pl_module, "validate", self._traversals)
            if not grids:
                return
            self.picture = torch.cat([image_grid(images) for images in grids], 1)
            send_picture(trainer, f"traversal/{self.layer}", self.picture, step)
            if writes_files(trainer) and not (trainer.loggers and all_take_pictures(trainer)):
                write_picture(f"{directory}/{self.layer}-epoch={epoch}-step={step}.png", self.picture)

    def _images(
        self, trainer: Trainer, pl_module: LightningModule, split: str, latents: Callable[..., list[list[Tensor]]]
    ) -> list[Tensor]:
        """What the decoder makes of rows of latents, which are made of what came; none if nothing came."""
        taken = [part.moments for part in self._synchronized(trainer, pl_module, split)[0].values() if part]
        moments = reduce(merge_moments, taken) if taken else None
        inputs, axis = self._first_inputs(trainer, pl_module, split)
        if moments is None or moments.n == 0 or not inputs:
            self._warn_silent()
            return []
        precision = trainer.precision_plugin.val_step_context
        with torch.no_grad(), isolate_rng(), precision():
            return [self._decode(pl_module, rows) for rows in latents(moments, inputs, axis)]

    def _mean(self, moments: Moments, inputs: list[Tensor], axis: int) -> list[list[Tensor]]:
        return [[_at_all_positions(moments.mean[None].cpu(), inputs[0], axis)]]

    def _traversals(self, moments: Moments, inputs: list[Tensor], axis: int) -> list[list[Tensor]]:
        n_directions = min(self.n_directions, len(moments.mean))
        traversals = traverse_principal_directions(moments, n_directions, self.steps)
        rows = [[_at_all_positions(row.cpu(), inputs[0], axis) for row in traversals]]
        if len(inputs) == 2 and inputs[0].shape == inputs[1].shape:
            rows.append([interpolate_latents(inputs[0], inputs[1], self.steps)])
        return rows

    def _first_inputs(self, trainer: Trainer, pl_module: LightningModule, split: str) -> tuple[list[Tensor], int]:
        """Latents of the first two finite samples, on every process; a distributed sampler deals round robin."""
        (tap,) = self._taps
        own = [sample.cpu() for key, samples in tap.examples.items() if key[0] == split for sample in samples][:2]
        counts = torch.zeros(trainer.world_size, dtype=torch.int64, device=pl_module.device)
        counts[trainer.global_rank] = len(own)
        counts = torch.as_tensor(trainer.strategy.reduce(counts, reduce_op="sum")).tolist()
        deals = sorted((place, process) for process, count in enumerate(counts) for place in range(count))[:2]
        dealt: list[Any] = [
            trainer.strategy.broadcast((own[place], tap.axis) if place < len(own) else None, process)
            for place, process in deals
        ]
        return [sample for sample, _ in dealt], next((axis for _, axis in dealt), -1)

    def _decode(self, pl_module: LightningModule, rows: list[Tensor]) -> Tensor:
        decoder = find_submodule(pl_module, self.decoder, "decoder")
        # A copy of its own, laid out as usual, for decoders that view it or write into it.
        given = [row.to(pl_module.device).clone(memory_format=torch.contiguous_format) for row in rows]
        (tap,) = self._taps
        with tap.noting() if self.at == "input" else nullcontext([]) as came:
            decoded = [self._as_images(decoder(latents)).cpu() for latents in given]
        if came and not (came[0].numel() == rows[0].numel() and came[0].flatten().equal(rows[0].to(came[0]).flatten())):
            raise ValueError(
                f"decoder={self.decoder!r}: expected it to hand on to layer={self.layer!r}, which is inside it, the "
                "latents that it is given, got others: what is done to them on the way would be done twice. Pass as "
                "decoder what comes behind the layer, as a module of its own, or as layer one in front of the decoder"
            )
        return torch.stack(decoded)

    def _as_images(self, decoded: Any) -> Tensor:
        images = self.to_images(decoded)
        if isinstance(images, Tensor) and images.is_floating_point():
            shape = tuple(images.shape[1:])
            if images.ndim == 4 and shape[0] in (1, 3) and self.image_shape in (None, shape):
                return images
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        vectors = "" if self.image_shape is None else f" or vectors for image_shape={self.image_shape}"
        raise ValueError(
            f"decoder={self.decoder!r}: expected it to return images (B, C, H, W) with 1 or 3 channels in [0, 1]"
            f"{vectors}, got {got}; pass image_shape=(C, H, W) that fits its vectors, or override "
            "LatentTraversal.to_images"
        )

    def _warn_silent(self) -> None:
        if not self._warned_silent:
            self._warned_silent = True
            rank_zero_warn(
                f"LatentTraversal: no sample came in this epoch of which the output of layer {self.layer!r} is finite "
                "(its forward alone is not a call), so there is nothing to draw"
            )


def _at_all_positions(rows: Tensor, like: Tensor, axis: int) -> Tensor:
    """``(steps, dim)`` as ``(steps, *like.shape)``, the same at all positions; ``axis`` that of the features."""
    shape = [1] * (like.ndim + 1)
    shape[0], shape[axis] = rows.shape
    return rows.to(like.dtype).reshape(shape).expand(len(rows), *like.shape)
