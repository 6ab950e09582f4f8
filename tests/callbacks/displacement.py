"""The learning rate that was in effect, read off what happened to the parameters and not off a dict."""

import torch
from lightning.pytorch import Callback

from lightning_rank import LinearBottleneck


def linear_parameters(model):
    layers = [module for module in model.modules() if isinstance(module, LinearBottleneck)]
    return {id(parameter) for layer in layers for parameter in layer.parameters()}


class Displacement(Callback):
    """Under SGD, how far each parameter moved over its gradient, at each step: (the others, the linear layers)."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {name: parameter.grad.clone() for name, parameter in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        linear, rates = linear_parameters(pl_module), {True: [], False: []}
        for name, parameter in pl_module.named_parameters():
            moved = self.before[name] - parameter.detach()
            rates[id(parameter) in linear].append(float(moved.norm() / self.gradients[name].norm()))
        for found in rates.values():
            torch.testing.assert_close(found, found[:1] * len(found), rtol=1e-3, atol=0)
        self.steps.append((rates[False][0], rates[True][0]))
