"""Numbers that all processes know, on their way to loggers and to callbacks that watch them."""

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from lightning_rank.callbacks._loggers import logger_step, send_scalars


class _Known(Metric):
    """A number that is the same on all processes.

    Lightning would average a plain number over them, in two collectives for each key, or advise to.
    """

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("value", torch.tensor(torch.nan, dtype=torch.float32))
        self.update(value)

    def update(self, value: float) -> None:
        self.value = torch.tensor(value, dtype=torch.float32)

    def compute(self) -> Tensor:
        return self.value


def log_epoch(pl_module: LightningModule, row: Mapping[str, float], logger: bool | None = None) -> None:
    """Log at the end of an epoch; to be called on every process."""
    for key, value in row.items():
        pl_module.log(
            key,
            _Known(value),
            on_step=False,
            on_epoch=True,
            logger=logger,
            metric_attribute=key,
            add_dataloader_idx=False,
            batch_size=1,
        )


def log_steps(pl_module: LightningModule, row: Mapping[str, float]) -> None:
    """Log at the end of a training batch, whichever Lightning logs at, or where a validation begins; on every process.

    Callbacks see it in the same hook, or at the end of the validation; loggers get it at once.
    """
    if pl_module.trainer.validating:
        log_epoch(pl_module, row, logger=False)
    else:
        pl_module.log_dict(dict(row), on_step=True, on_epoch=False, logger=False, batch_size=1)
    send_scalars(pl_module.trainer, row, logger_step(pl_module.trainer))
