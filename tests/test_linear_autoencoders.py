"""The benchmarks' stacks of linear autoencoders train as each model does by itself."""

import copy
import functools

import linear_autoencoders
import pytest
import torch
from linear_autoencoders import BATCH, Stack, Trial

from lightning_rank import depth_scaled_param_groups


@pytest.mark.parametrize(
    ("depth", "make_optimizer"),
    [(4, torch.optim.Adam), (0, torch.optim.Adam), (2, functools.partial(torch.optim.SGD, momentum=0.9))],
)
def test_each_model_of_a_stack_trains_as_it_would_alone(depth, make_optimizer):
    trials = [Trial(rank, depth, seed, gain=0.3, noise=0.1) for rank, seed in ((4, 5), (8, 6))]
    stack = Stack.of(trials)
    alone = [copy.deepcopy(trial.make_model()).double() for trial in trials]
    for name in stack.parameters:
        stack.parameters[name] = stack.parameters[name].detach().double().requires_grad_()
    stack.train_rows, stack.held_out = stack.train_rows.double(), stack.held_out.double()
    for _ in stack.train(make_optimizer(stack.param_groups(1e-2, weight_decay=0.02)), 30):
        pass
    optimizers = [make_optimizer(depth_scaled_param_groups(model, 1e-2, weight_decay=0.02)) for model in alone]
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        drawn = torch.randint(4096, (2, BATCH, 1), generator=generator)[..., 0]
        for model, optimizer, rows, picked in zip(alone, optimizers, stack.train_rows, drawn, strict=True):
            loss = (model(rows[picked]) - rows[picked]).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for index, model in enumerate(alone):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(stack.parameters[name][index], parameter, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        values = torch.linalg.svdvals(alone[1][2].weight @ alone[1][1].weight @ alone[1][0].weight)
    torch.testing.assert_close(stack.singular_values()[1, :32], values[:32])


def test_biases_are_not_decayed():
    groups = Stack.of([Trial(4, 2, 0, bias=True)]).param_groups(1e-2, weight_decay=0.1)
    assert [(g["name"], g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("base", 1e-2, 0.1, 2),
        ("biases", 1e-2, 0.0, 2),
        ("1", 5e-3, 0.1, 2),
    ]


def test_what_is_measured():
    trial = Trial(4, 2, 0)
    stack = Stack.of([trial])
    axes = torch.linalg.svd(stack.train_rows[0], full_matrices=False).Vh[:4]
    with torch.no_grad():
        stack.parameters["0.weight"].zero_()[0, :4] = axes
        stack.parameters["2.weight"].zero_()[0, :, :4] = axes.T
        for layer in ("1.layers.0.weight", "1.layers.1.weight"):
            stack.parameters[layer][0] = torch.eye(32)
    (row,) = stack.measure([trial])
    assert (row["found"], row["variance_ratio"]) == (4, 0)
    assert row["excess"] == pytest.approx(1, abs=1e-5)
    assert stack.singular_values()[0, :5].tolist() == pytest.approx([1, 1, 1, 1, 0], abs=1e-5)


@pytest.mark.parametrize(("spectrum", "last"), [("1 to 1/4", 0.25), ("1 to 0.1, geometric", 0.1), ("all 1", 1.0)])
def test_spectra(spectrum, last):
    variances = linear_autoencoders.SPECTRA[spectrum](8)
    assert (variances[0].item(), variances[-1].item()) == (1.0, pytest.approx(last))
