"""The rank of a layer as a curve, in a model that has nothing to do with autoencoders: a classifier of digits.

``python examples/monitor_any_model.py`` trains for some seconds, with nothing to download. The monitor needs the name
of a layer, and nothing of the model.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_rank import EffectiveRankMonitor
from rank_trainer.data import digits


class Classifier(LightningModule):
    """Any model of yours."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        images, labels = batch
        return F.cross_entropy(self.head(self.backbone(images)), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy; the monitor sees what the layers make of the same batches."""
        images, labels = batch
        accuracy = (self.head(self.backbone(images)).argmax(1) == labels).float().mean()
        self.log("val/accuracy", accuracy, batch_size=len(images), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(max_epochs: int = 30) -> list[dict[str, float]]:
    """Train, and print the curve that a logger would draw."""
    seed_everything(0)
    monitor = EffectiveRankMonitor("backbone")
    trainer = Trainer(max_epochs=max_epochs, callbacks=[monitor], logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(), datamodule=digits())
    for row in monitor.history[:: max(1, max_epochs // 10)]:
        print(f"epoch {row['epoch'] + 1:3d}: effective rank {row['rank/effective']:.2f} of 32")
    return monitor.history


if __name__ == "__main__":
    main()
