"""The callback that shows what the leading directions of the latents mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_rank.callbacks import picture_loggers
from lightning_rank.callbacks.latent_tap import LatentTap
from lightning_rank.callbacks.repeated_samples import evaluation_loaders, valid_samples
from lightning_rank.nn.submodules import find_submodule
from lightning_rank.traversal import image_grid, interpolate_latents, traverse_principal_directions


class LatentTraversal(Callback):
    """Draws what the decoder makes of latents along their leading principal directions.

    A row of the picture is a direction, in falling variance, from -2 to +2 standard deviations around the mean of the
    latents of the whole validation split, on all processes; in a direction that the latents do not use nothing changes.
    Of latents ``(B, T, dim)`` or ``(B, dim, H, W)`` every position is a row that counts, and all positions move alike.
    The last row, set apart, leads from the first to the second input of the split on a straight line between their
    latents.

    W&B and TensorBoard get the picture as ``traversal/<layer>``. For other loggers, and without one, it is written to
    ``latent_traversals/<layer>-epoch=...-step=....png`` beside the checkpoints. It is drawn in every validation epoch,
    sent in some, and the last one at the end of training, and by ``trainer.validate``. What does not work is found in
    the sanity check, of which nothing is sent.

    The decoder runs on every process, so that a sharded one works, in the mode and precision of validation, a row of
    ``steps`` latents at a time. Random states are put back.

    Args:
        layer: Dotted name of the submodule whose output the decoder takes.
        output: Which output of a layer that returns several, by index or key; ``None`` if it returns one tensor.
        decoder: Dotted name of the decoder. It returns images ``(B, C, H, W)`` of 1 or 3 channels in [0, 1], what is
            outside being clamped, or vectors; for anything else override :meth:`to_images`.
        image_shape: ``(C, H, W)``, if the decoder returns vectors.
        n_directions: How many directions, at most the width of the latents.
        steps: How many images a row.
        every_n_epochs: Send the picture in the last of every so many epochs.

    Attributes:
        picture: The last picture, uint8, shape ``(C, height, width)``, on the CPU; ``None`` before the first.

    Raises:
        ModuleNotFoundError: At the start of a stage, Pillow is not installed.
        TypeError: A name is not a string; the layer does not return a real floating-point tensor.
        ValueError: An argument is out of range; at the start of a stage, the module has no such layer or decoder; in
            the sanity check, the layer returns several tensors and ``output`` does not say which, or the decoder
            returns what is no image.

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
        output: int | str | None = None,
        decoder: str = "decoder",
        image_shape: Sequence[int] | None = None,
        n_directions: int = 8,
        steps: int = 9,
        every_n_epochs: int = 10,
    ) -> None:
        for name, value in (("layer", layer), ("decoder", decoder)):
            if not isinstance(value, str):
                raise TypeError(f"{name}: expected the dotted name of a submodule, got {type(value).__name__}")
        numbers = [("n_directions", n_directions, 1), ("steps", steps, 2), ("every_n_epochs", every_n_epochs, 1)]
        for name, value, least in numbers:
            if value < least:
                raise ValueError(f"{name}: expected {least} or more, got {value}")
        if image_shape is not None and (len(image_shape) != 3 or image_shape[0] not in (1, 3) or min(image_shape) < 1):
            raise ValueError(f"image_shape: expected (C, H, W) with 1 or 3 channels, got {tuple(image_shape)}")
        self.layer = layer
        self.output = output
        self.decoder = decoder
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.n_directions = n_directions
        self.steps = steps
        self.every_n_epochs = every_n_epochs
        self.picture: Tensor | None = None
        self._unsent: tuple[int, int] | None = None
        self._tap = LatentTap()
        self._warned_silent = False

    def to_images(self, decoded: Any) -> Tensor:
        """The decoder's output as images ``(B, C, H, W)`` in [0, 1]; override it for logits, tuples and the like."""
        fits = isinstance(decoded, Tensor) and decoded.shape[1:].numel() == math.prod(self.image_shape or ())
        return decoded.reshape(-1, *self.image_shape) if self.image_shape and fits else decoded

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the hook, early enough for whoever compiles the module next."""
        if find_spec("PIL") is None:
            raise ModuleNotFoundError("LatentTraversal: pictures are made by Pillow: pip install pillow")
        self._remove_tap()
        self._unsent = None
        if stage in ("fit", "validate"):
            # A layer that configure_model is yet to make is looked for again when the stage starts.
            with suppress(ValueError):
                self._set_tap(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find layers that ``configure_model`` has made since; refuse those that do not exist."""
        self._set_tap(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if there will be no pictures."""
        if not trainer.enable_validation or sum(trainer.num_val_batches) == 0:
            rank_zero_warn("LatentTraversal: there is no validation data, so it draws nothing")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same as when training starts, for ``trainer.validate``."""
        self._set_tap(pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take in what comes, save for the samples that fill up a distributed split."""
        self._tap.valid = valid_samples(evaluation_loaders(trainer)[dataloader_idx], batch_idx)
        self._tap.active = True

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """What runs between batches does not count."""
        self._tap.active = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, and send if it is time to."""
        picture = self._draw(trainer, pl_module)
        self._tap.reset()
        if picture is None or trainer.sanity_checking:
            return
        self.picture, self._unsent = picture, (trainer.current_epoch, trainer.global_step)
        if trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._send(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the last picture."""
        self._send(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was found."""
        self._remove_tap()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was found; Lightning does not call ``teardown`` after an exception."""
        self._remove_tap()

    def _set_tap(self, pl_module: nn.Module) -> None:
        find_submodule(pl_module, self.decoder, "decoder")
        if not self._tap.layer:
            self._tap = LatentTap(self.layer, find_submodule(pl_module, self.layer, "layer"), self.output)
            # Compiled code does not look whether a module has got a hook since: not even code of an equal module.
            torch.compiler.reset()

    def _remove_tap(self) -> None:
        self._tap.remove()
        self._tap = LatentTap()

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> Tensor | None:
        """The picture, the same on every process; ``None`` if there were no latents."""
        metric = self._tap.agreed_metric(trainer.strategy, pl_module.device)
        inputs = self._first_inputs(trainer)
        if metric is None:
            return self._warn_silent()
        with torch.inference_mode(False), torch.no_grad(), metric.sync_context():
            moments = metric.as_moments()
            if moments.n == 0:
                return self._warn_silent()
            n_directions = min(self.n_directions, metric.dim)
            traversals = traverse_principal_directions(moments, n_directions, self.steps)
            axis = self._tap.feature_axis(inputs[0][None])
            grids = [[_at_all_positions(row.cpu(), inputs[0], axis) for row in traversals]]
            if len(inputs) == 2 and inputs[0].shape == inputs[1].shape:
                grids.append([interpolate_latents(inputs[0], inputs[1], self.steps)])
            with isolate_rng(), trainer.precision_plugin.val_step_context():
                return torch.cat([image_grid(self._decode(pl_module, rows)) for rows in grids], 1)

    def _decode(self, pl_module: LightningModule, rows: list[Tensor]) -> Tensor:
        decoder = find_submodule(pl_module, self.decoder, "decoder")
        return torch.stack([self._as_images(decoder(row.to(pl_module.device))).cpu() for row in rows])

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

    def _first_inputs(self, trainer: Trainer) -> list[Tensor]:
        """Latents of the first two samples of the split, on every process; a distributed sampler deals round robin."""
        own = [example.cpu() for example in self._tap.examples]
        hands = [trainer.strategy.broadcast(own, source) for source in range(trainer.world_size)]
        return [latent for deal in zip_longest(*hands) for latent in deal if latent is not None][:2]

    def _warn_silent(self) -> None:
        if not self._warned_silent:
            self._warned_silent = True
            rank_zero_warn(
                f"LatentTraversal: no finite output of layer {self.layer!r} came in this epoch (its forward alone is "
                "not a call), so there is nothing to draw"
            )

    def _send(self, trainer: Trainer) -> None:
        directory = picture_loggers.files_directory(trainer, "latent_traversals")
        if self.picture is None or self._unsent is None or not trainer.is_global_zero:
            return
        (epoch, step), self._unsent = self._unsent, None
        picture_loggers.send_picture(trainer, f"traversal/{self.layer}", self.picture, step)
        debugging = trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue]
        if not debugging and not (trainer.loggers and picture_loggers.all_take_pictures(trainer)):
            path = directory / f"{self.layer}-epoch={epoch}-step={step}.png"
            picture_loggers.write_picture(path, self.picture)


def _at_all_positions(rows: Tensor, like: Tensor, axis: int) -> Tensor:
    """``(steps, dim)`` as ``(steps, *like.shape)``, the same at all positions; ``axis`` that of the features."""
    shape = [1] * (like.ndim + 1)
    shape[0], shape[axis] = rows.shape
    return rows.to(like.dtype).reshape(shape).expand(len(rows), *like.shape)
