"""What is hung onto a training: a line of progress, and what is left of it, in the end or in the middle."""

import copy
import json
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from lightning_rank import EffectiveRankMonitor
from rank_trainer.files import write_whole


class Progress(Callback):
    """One line a run: a bar over epochs, with rank and error."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, from the epoch where training goes on."""
        self.bar = tqdm(
            desc=self.title,
            total=trainer.max_epochs,
            initial=trainer.current_epoch,
            unit="epoch",
            disable=not trainer.is_global_zero,
            mininterval=0.5,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One more."""
        shown = {"rank": "rank/effective", "val error": "val/loss"}
        metrics = trainer.callback_metrics
        values = {key: f"{metrics[name]:.2f}" for key, name in shown.items() if name in metrics}
        self.bar.set_postfix(values, refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line as it is."""
        self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the line as it is."""
        if hasattr(self, "bar"):
            self.bar.close()


class SaveTraining(Callback):
    """Keeps what training came to: its last checkpoint, metrics and rank curve."""

    def __init__(self, monitor: EffectiveRankMonitor, directory: Path) -> None:
        self.monitor = monitor
        self.directory = directory
        self.before = 0.0  # seconds that the checkpoint took which is gone on from
        self.start: float | None = None

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return self.before + (0.0 if self.start is None else time.monotonic() - self.start)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on counting from a checkpoint."""
        self.before = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint, then ``trained.json``, which says that it is the last."""
        trainer.save_checkpoint(self.directory / "last.ckpt")
        if trainer.is_global_zero:
            trained = {key: float(value) for key, value in trainer.callback_metrics.items()}
            trained |= {"epochs": trainer.current_epoch, "seconds": round(self.seconds, 1)}
            trained["history"] = self.monitor.history
            trained["singular_values"] = self.monitor.singular_values["linear_bottleneck"].tolist()
            write_whole(self.directory / "trained.json", json.dumps(trained))


class KeepWeights(Callback):
    """Keeps the weights as they are after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.state: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy them."""
        if trainer.current_epoch + 1 == self.epochs:
            self.state = copy.deepcopy(pl_module.state_dict())
