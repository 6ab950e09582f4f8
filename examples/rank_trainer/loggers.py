"""Where the curves of a sweep go."""

import os
import uuid
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image

LOGGERS = ("wandb", "csv", "tensorboard", "none")


def check_logger(kind: str) -> None:
    """Refuse a logger that cannot be made, before anything is trained.

    Raises:
        ValueError: It is none of :data:`LOGGERS`, or its package cannot be imported.
    """
    if kind not in LOGGERS:
        raise ValueError(f"logger: expected one of {LOGGERS}, got {kind!r}")
    if kind in ("wandb", "tensorboard"):  # packages of these names; the others come with Lightning
        try:
            import_module(kind)
        except ImportError as error:
            raise ValueError(
                f"logger: {kind!r} needs a package that cannot be imported ({error}): python -m pip install {kind}, or "
                "take another logger, such as 'csv'"
            ) from error


def make_logger(
    kind: str, directory: Path, *, name: str, project: str, group: str, tags: Sequence[str], config: dict[str, Any]
) -> Logger | None:
    """The logger of a run; with W&B, one W&B run for it, however many processes train and however often it resumes.

    Args:
        kind: Of :data:`LOGGERS`.
        directory: The run's.
        name: The run's.
        project: W&B project.
        group: W&B group.
        tags: W&B tags.
        config: What W&B shows as the run's configuration.
    """
    if kind == "wandb":
        return WandbLogger(
            name=name,
            id=_wandb_id(directory),
            project=project,
            group=group,
            tags=list(tags),
            save_dir=directory,
            mode=_wandb_mode(),
            config=config,
        )
    if kind == "csv":
        return CSVLogger(directory, name="csv")  # a resumed run writes another version: it cannot append
    if kind == "tensorboard":
        return TensorBoardLogger(directory, name="", version="tensorboard")
    return None


@rank_zero_only
def log_result(logger: Logger | None, metrics: dict[str, float], pictures: Sequence[Path]) -> None:
    """Send what was measured after training, and the pictures of it."""
    if logger is None:
        return
    logger.log_metrics(metrics)
    for path in pictures:
        if isinstance(logger, WandbLogger):
            logger.log_image(path.stem, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(path.stem, np.asarray(Image.open(path)), dataformats="HWC")
    logger.finalize("success")  # training was the end of it


def finish(logger: Logger | None, exit_code: int) -> None:
    """Close a W&B run, so that the next one can start."""
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code)


def _wandb_id(directory: Path) -> str | None:
    """Where a W&B sweep runs us, its agent's; else our own, kept with the run: resumed, it is one curve, not two."""
    if "WANDB_SWEEP_ID" in os.environ:
        return os.environ.get("WANDB_RUN_ID")
    path = directory / "wandb_id.txt"
    if rank_zero_only.rank == 0 and not path.exists():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text() if path.exists() else None


def _wandb_mode() -> str:
    """What the environment says, else offline where no account is set up."""
    import wandb

    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.errors.Error as error:
        print(f"W&B: {error}; logging offline")
        return "offline"
