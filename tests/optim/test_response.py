"""The trial of an optimizer leaves no trace, whatever the optimizer keeps besides its groups."""

import math

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_rank.optim import response_to_learning_rate


class ByHand(Optimizer):
    """SGD that keeps something of its own."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.flat = [parameter for group in self.param_groups for parameter in group["params"]]
        self.steps, self.count, self.averages = 0, torch.zeros(()), {}

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                self.update(group)

    def update(self, group):
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=group["lr"])


class Flat(ByHand):
    """Updates the parameters that it was built with, all at the learning rate of the first group."""

    def step(self, closure=None):
        with torch.no_grad():
            for parameter in self.flat:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=self.param_groups[0]["lr"])


class WarmingUp(ByHand):
    """Counts its steps in a number and in a tensor, and keeps averages outside of the state."""

    def update(self, group):
        self.steps += 1
        self.count += 1
        for index, parameter in enumerate(group["params"]):
            average = self.averages.setdefault((id(group), index), torch.zeros_like(parameter))
            average.add_(parameter.grad)
            parameter.sub_(average, alpha=group["lr"] * min(1, self.count.item() / 100))


class WithClosure(ByHand):
    def step(self, closure):
        closure()
        super().step()


class AtItsOwnRate(ByHand):
    def step(self, closure):
        closure()
        super().step()

    def update(self, group):
        super().update(group | {"lr": 0.1})


class Elsewhere(ByHand):
    """Updates copies that it made."""

    def step(self, closure=None):
        with torch.no_grad():
            for copy in [parameter.detach().clone() for group in self.param_groups for parameter in group["params"]]:
                copy.sub_(1.0)


class NotToBeCopied(ByHand):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.steps = (number for number in range(10))


@pytest.mark.parametrize(
    ("cls", "lr", "expected"),
    [
        (Flat, 0.1, 1.0),
        (WarmingUp, 0.1, 0.5),
        (WithClosure, 0.1, 0.5),
        (WithClosure, 0.0, 0.5),
        (AtItsOwnRate, 0.1, 1.0),
        (AtItsOwnRate, 0.0, 1.0),
        (Elsewhere, 0.1, math.nan),
        (NotToBeCopied, 0.1, None),
    ],
)
def test_what_is_measured_and_that_all_is_as_before(cls, lr, expected):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    optimizer = cls([{"params": layer.parameters()} for layer in model], lr)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, count, attributes = [p.detach().clone() for p in model.parameters()], optimizer.count, dict(vars(optimizer))
    response = response_to_learning_rate(optimizer, optimizer.param_groups[1])
    assert response == (None if expected is None else pytest.approx(expected, nan_ok=True))
    assert all(torch.equal(p, old) and bool((p.grad == 1).all()) for p, old in zip(optimizer.flat, before, strict=True))
    assert vars(optimizer) == attributes
    assert optimizer.count is count
    assert count == 0
    assert optimizer.averages == {}
    assert all(p is q for p, q in zip(optimizer.flat, model.parameters(), strict=True))
