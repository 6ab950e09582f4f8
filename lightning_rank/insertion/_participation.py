"""Saying so where a bottleneck takes no part in training, since whatever was to call it is never called."""

import warnings
import weakref
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from lightning_rank.nn.linear_bottleneck import LinearBottleneck

_awaited: weakref.WeakKeyDictionary[LinearBottleneck, str] = weakref.WeakKeyDictionary()


def expect_gradients(bottleneck: LinearBottleneck, name: str) -> None:
    """Warn if the weights of ``bottleneck`` have no gradient when an optimizer that holds them takes its first step.

    Args:
        bottleneck: Looked at once; not kept alive.
        name: How the warning calls it.
    """
    if bottleneck.depth > 0:
        _awaited[bottleneck] = name


def _look(optimizer: Optimizer, *_: Any) -> None:
    if torch.compiler.is_compiling() or not any(p.requires_grad for awaited in _awaited for p in awaited.parameters()):
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for bottleneck, name in list(_awaited.items()):
        trained = [p for p in bottleneck.parameters() if p.requires_grad and id(p) in held]
        if trained:
            del _awaited[bottleneck]
            if all(parameter.grad is None for parameter in trained):
                warnings.warn(
                    f"linear bottleneck {name!r} took no part in the first training step: its weights have no "
                    "gradient. Probably the module that holds it is not called as a module (encoder.forward(x) or "
                    "model.encode(x) is no call of the encoder), or it runs without gradients. Attach it before= the "
                    "module that takes the latents, or call it in forward (LinearBottleneckMixin)",
                    stacklevel=2,
                )


# After the step, for a closure may have run the backward pass inside of it.
register_optimizer_step_post_hook(_look)
