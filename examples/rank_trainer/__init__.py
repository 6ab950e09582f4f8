"""The example trainer: autoencoders over methods, depths, gains and seeds, and what came of them.

A method is a value. One of your own, here default-initialized layers at the learning rate over depth, takes its place
beside the others::

    from functools import partial
    from lightning_rank import DepthScaledLR, attach_linear_bottleneck
    from rank_trainer import METHODS, Method, RankSweep

    attach = partial(attach_linear_bottleneck, gain=1.0, init="default")
    scaled = Method("scaled", attach, callbacks=[DepthScaledLR])
    RankSweep(..., methods=[*METHODS.values(), scaled]).run()
"""

from rank_trainer.methods import METHODS, Method
from rank_trainer.runs import Run
from rank_trainer.sweep import RankSweep

__all__ = ["METHODS", "Method", "RankSweep", "Run"]
