"""Trains and resumes under FSDP2 in as many processes as torchrun starts, and writes what came out; not a test."""

import sys
from pathlib import Path

import test_depth_scaled_lr_features as features
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_rank import DepthScaledLR, EffectiveRankMonitor


class Sharded(features.LearningRateOnly):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for module in (self.encoder.linear_bottleneck, self.encoder, self):
            fully_shard(module, mesh=mesh)


class Keep(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        for module in (pl_module.encoder.linear_bottleneck, pl_module.encoder, pl_module):
            module.reshard()
        weights = {name: parameter.full_tensor().clone() for name, parameter in pl_module.named_parameters()}
        torch.save((weights, ratios.ratios, monitor.history), self.path / str(trainer.global_rank))


ratios = features.Ratios()


def train(directory, epochs, ckpt_path=None):
    global monitor
    torch.manual_seed(0)
    monitor = EffectiveRankMonitor()
    trainer = tiny.trainer(
        callbacks=[DepthScaledLR(), monitor, ratios, Keep(directory)],
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_epochs=epochs,
    )
    loaders = tiny.loader(16, 8), tiny.loader(21, 8, seed=2)
    weights_only = None if ckpt_path is None else False
    trainer.fit(features.attached(Sharded()), *loaders, ckpt_path=ckpt_path, weights_only=weights_only)
    return trainer


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    train(directory, 2).save_checkpoint(directory / "sharded", weights_only=False)
    train(directory, 4, directory / "sharded")
    # Left to the interpreter's exit, the threads of gloo abort the process now and then.
    torch.distributed.destroy_process_group()
