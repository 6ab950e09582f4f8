"""A run that was interrupted and resumed ends as the unbroken one."""

import pytest
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler

from lightning_rank import DepthScaledLR, EffectiveRankMonitor

EPOCHS = 5


class Crash(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            raise RuntimeError("on purpose")


class Keep(Callback):
    """Writes how each process ended."""

    def __init__(self, directory, monitor):
        self.directory, self.monitor = directory, monitor

    def on_fit_end(self, trainer, pl_module):
        optimizer = trainer.optimizers[0].state_dict()
        torch.save((pl_module.state_dict(), optimizer, self.monitor.history), self.directory / str(trainer.global_rank))


def run(directory, *callbacks, ckpt_path=None, **options):
    directory.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = tiny.tiny()

    def configure_optimizers():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    model.configure_optimizers = configure_optimizers
    monitor = EffectiveRankMonitor()
    checkpoint = ModelCheckpoint(directory, "last", enable_version_counter=False)
    trainer = tiny.trainer(
        callbacks=[DepthScaledLR(), monitor, *callbacks, checkpoint, Keep(directory, monitor)],
        max_epochs=EPOCHS,
        enable_checkpointing=True,
        **options,
    )
    trainer.fit(model, tiny.loader(), tiny.loader(20, 8, seed=2), ckpt_path=ckpt_path, weights_only=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_and_resumed_equals_unbroken(processes, tmp_path):
    options = {} if processes == 1 else {"devices": 2, "strategy": "ddp_fork"}
    run(tmp_path / "unbroken", **options)
    with pytest.raises(Exception, match="on purpose"):
        run(tmp_path / "resumed", Crash(epoch=3), **options)
    run(tmp_path / "resumed", ckpt_path=tmp_path / "resumed/last.ckpt", **options)
    for process in range(processes):
        unbroken = torch.load(tmp_path / "unbroken" / str(process))
        resumed = torch.load(tmp_path / "resumed" / str(process))
        for name, weight in unbroken[0].items():
            assert torch.equal(weight, resumed[0][name]), name
        assert resumed[1]["param_groups"] == unbroken[1]["param_groups"]
        torch.testing.assert_close(resumed[1]["state"], unbroken[1]["state"], rtol=0, atol=0)
        assert resumed[2] == unbroken[2]
        assert [row["epoch"] for row in resumed[2]] == list(range(EPOCHS))


def test_another_multiplier_is_said_and_holds(tmp_path):
    run(tmp_path)
    model = tiny.tiny()
    model.configure_optimizers = lambda: torch.optim.AdamW(model.parameters(), lr=1e-2)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["lr_schedulers"] = []
    checkpoint["callbacks"] = {key: value for key, value in checkpoint["callbacks"].items() if key == "DepthScaledLR"}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    trainer = tiny.trainer(callbacks=[DepthScaledLR(0.5)], max_epochs=EPOCHS + 1)
    with pytest.warns(UserWarning, match=r"trained with the multipliers .*0.25.*goes on with .*0.5"):
        trainer.fit(model, tiny.loader(), ckpt_path=tmp_path / "other.ckpt", weights_only=True)
    base, linear = trainer.optimizers[0].param_groups
    assert linear["lr"] == 0.5 * base["lr"]
    assert linear["depth_multiplier"] == 0.5
