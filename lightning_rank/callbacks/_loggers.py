"""What goes to loggers: one step axis for all of it, and each logger's own calls for what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


class _Wandb:
    def histogram(self, logger: Any, key: str, values: Tensor, step: int, epoch: int) -> None:
        import wandb

        histogram: Any = wandb.Histogram(values.tolist())
        logger.log_metrics({key: histogram, "epoch": epoch}, step=step)

    def figure(self, logger: Any, key: str, figure: Figure, step: int) -> None:
        logger.log_image(key=key, images=[figure], step=step)

    def picture(self, logger: Any, key: str, picture: Tensor, step: int) -> None:
        logger.log_image(key=key, images=[as_pillow(picture)], step=step)


class _TensorBoard:
    def histogram(self, logger: Any, key: str, values: Tensor, step: int, epoch: int) -> None:
        logger.experiment.add_histogram(key, values, global_step=step)

    def figure(self, logger: Any, key: str, figure: Figure, step: int) -> None:
        logger.experiment.add_figure(key, figure, global_step=step)

    def picture(self, logger: Any, key: str, picture: Tensor, step: int) -> None:
        logger.experiment.add_image(key, picture, global_step=step)


class _MLFlow:
    def histogram(self, logger: Any, key: str, values: Tensor, step: int, epoch: int) -> None:
        """MLflow has none."""

    def figure(self, logger: Any, key: str, figure: Figure, step: int) -> None:
        logger.experiment.log_figure(logger.run_id, figure, f"{key}/step={step:09d}.png")

    def picture(self, logger: Any, key: str, picture: Tensor, step: int) -> None:
        logger.experiment.log_image(logger.run_id, as_pillow(picture), f"{key}/step={step:09d}.png")


class _Comet:
    def histogram(self, logger: Any, key: str, values: Tensor, step: int, epoch: int) -> None:
        logger.experiment.log_histogram_3d(values.tolist(), name=key, step=step, epoch=epoch)

    def figure(self, logger: Any, key: str, figure: Figure, step: int) -> None:
        logger.experiment.log_figure(figure_name=key, figure=figure, step=step)

    def picture(self, logger: Any, key: str, picture: Tensor, step: int) -> None:
        logger.experiment.log_image(as_pillow(picture), name=key, step=step)


# By name, for a logger may be of either of Lightning's two packages.
_KINDS = {
    "WandbLogger": _Wandb(),
    "TensorBoardLogger": _TensorBoard(),
    "MLFlowLogger": _MLFlow(),
    "CometLogger": _Comet(),
}


def logger_step(trainer: Trainer, epoch_ended: bool = False) -> int:
    """Where Lightning puts the scalars that are logged now; ``epoch_ended`` when the training epoch has.

    It counts the batches after which optimizers stepped, once however many there are, as ``trainer.global_step`` does
    not.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped - int(epoch_ended)


def all_take_pictures(trainer: Trainer) -> bool:
    """Whether no logger needs a file instead; so it is without any logger."""
    return all(_kind(logger) is not None for logger in trainer.loggers)


def some_take_pictures(trainer: Trainer) -> bool:
    """Whether there is anybody to draw for."""
    return any(_kind(logger) is not None for logger in trainer.loggers)


def send_scalars(trainer: Trainer, row: Mapping[str, float], step: int) -> None:
    """Send scalars to all loggers now, whichever steps Lightning logs at; on the main process, as all that is sent."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics({**row, "epoch": trainer.current_epoch}, step=step)


def send_histogram(trainer: Trainer, key: str, spectrum: Tensor, step: int) -> None:
    """Send the distribution of ``log10`` of what of a spectrum is not zero, a cheap view of all epochs in one."""
    values = spectrum[spectrum > 0].log10()
    if len(values) > 0:
        _send(trainer, lambda kind, logger: kind.histogram(logger, key, values, step, trainer.current_epoch))


def send_figure(trainer: Trainer, key: str, figure: Figure, step: int) -> None:
    """Send a figure of matplotlib's."""
    _send(trainer, lambda kind, logger: kind.figure(logger, key, figure, step))


def send_picture(trainer: Trainer, key: str, picture: Tensor, step: int) -> None:
    """Send a picture: uint8, shape ``(C, H, W)`` with 1 or 3 channels, on the CPU."""
    _send(trainer, lambda kind, logger: kind.picture(logger, key, picture, step))


def as_pillow(picture: Tensor) -> Image:
    """The same for Pillow."""
    from PIL import Image

    return Image.fromarray(picture.movedim(0, -1).squeeze(-1).numpy())


def _send(trainer: Trainer, call: Callable[[Any, Any], None]) -> None:
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            kind = _kind(logger)
            if kind is not None:
                call(kind, logger)


def _kind(logger: Any) -> Any:
    return next((_KINDS[base.__name__] for base in type(logger).__mro__ if base.__name__ in _KINDS), None)
