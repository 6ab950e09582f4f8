"""Trains under FSDP2 in as many processes as torchrun starts, and writes what came out; not a test by itself."""

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


ratios, monitor = features.Ratios(), EffectiveRankMonitor()
if __name__ == "__main__":
    torch.manual_seed(0)
    tiny.trainer(
        callbacks=[DepthScaledLR(), monitor, ratios, Keep(Path(sys.argv[1]))],
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_epochs=4,
    ).fit(features.attached(Sharded()), tiny.loader(16, 8), tiny.loader(21, 8, seed=2))
    # Left to the interpreter's exit, the threads of gloo abort the process now and then.
    torch.distributed.destroy_process_group()
