"""Which loggers take pictures, and where files go for those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def is_wandb(logger: Any) -> bool:
    """Whether it is a ``WandbLogger`` or derived from one."""
    return _is(logger, "WandbLogger")


def is_tensorboard(logger: Any) -> bool:
    """Whether it is a ``TensorBoardLogger`` or derived from one."""
    return _is(logger, "TensorBoardLogger")


def all_take_pictures(trainer: Trainer) -> bool:
    """Whether no logger needs a file instead; so it is without any logger."""
    return all(is_wandb(logger) or is_tensorboard(logger) for logger in trainer.loggers)


def files_directory(trainer: Trainer, name: str) -> Path:
    """A directory of that name beside the checkpoints, or with the logs.

    To be called on every process, for Lightning agrees with the others on the directory.
    """
    beside = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.log_dir or trainer.default_root_dir
    return Path(beside) / name


def send_picture(trainer: Trainer, key: str, picture: Tensor, step: int) -> None:
    """Send a picture to the loggers that take some.

    Args:
        trainer: Whose loggers.
        key: Of the picture.
        picture: uint8, shape ``(C, H, W)`` with 1 or 3 channels, on the CPU.
        step: Optimizer steps before it.
    """
    loggers: list[Any] = trainer.loggers
    for logger in loggers:
        if is_wandb(logger):
            logger.log_image(key=key, images=[_as_pillow(picture)], step=step)
        elif is_tensorboard(logger):
            logger.experiment.add_image(key, picture, global_step=step)


def write_picture(path: Path, picture: Tensor) -> None:
    """Write a picture, as :func:`send_picture` takes it, to a file; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _as_pillow(picture).save(path)


def _as_pillow(picture: Tensor) -> Image:
    from PIL import Image

    return Image.fromarray(picture.movedim(0, -1).squeeze(-1).numpy())


def _is(logger: Any, kind: str) -> bool:
    # By name, for a logger may be of either of Lightning's two packages.
    return any(base.__name__ == kind for base in type(logger).__mro__)
