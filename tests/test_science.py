"""The laws of the method, on the real modules."""

import pytest
import torch
from torch import nn

from lightning_rank import LinearBottleneck, depth_scaled_param_groups
from lightning_rank.functional import numerical_rank, weight_decay_for_variance_cutoff
from lightning_rank.metrics import LatentSpectrum
from rank_trainer import data

OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups),
    "momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "Adam": lambda groups: torch.optim.Adam(groups),
    "AdamW": lambda groups: torch.optim.AdamW(groups, weight_decay=0),
}


def one_step_change(depth: int, optimizer: str, multiplier) -> float:
    """Size of the change of the product in one step, from orthogonal factors of gain 1, for one Gaussian gradient."""
    torch.manual_seed(0)
    gradient = torch.randn(64, 64, dtype=torch.float64)
    bottleneck = LinearBottleneck(64, depth, gain=1.0, dtype=torch.float64)
    before = bottleneck.weight.detach()
    stepper = OPTIMIZERS[optimizer](depth_scaled_param_groups(bottleneck, 1e-6, multiplier=multiplier))
    (bottleneck.weight * gradient).sum().backward()
    stepper.step()
    return (bottleneck.weight.detach() - before).norm().item()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_one_step_at_lr_over_depth_moves_the_product_as_one_matrix_would(optimizer, depth):
    ratio = one_step_change(depth, optimizer, "inverse_depth") / one_step_change(1, optimizer, "inverse_depth")
    low, high = (0.75, 1.02) if optimizer.startswith("Adam") else (0.98, 1.02)
    assert low <= ratio <= high


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_step_unscaled_grows_with_depth(optimizer):
    assert one_step_change(16, optimizer, 1.0) / one_step_change(1, optimizer, 1.0) > 10


@pytest.mark.parametrize(("multiplier", "low", "high"), [("inverse_depth", 0.0193, 0.0203), (1.0, 0.2, 0.3)])
def test_decoupled_decay_of_the_product(multiplier, low, high):
    depths = (1, 2, 4, 8, 16) if multiplier == "inverse_depth" else (16,)
    for depth in depths:
        bottleneck = LinearBottleneck(16, depth, gain=1.0, dtype=torch.float64)
        optimizer = torch.optim.AdamW(
            depth_scaled_param_groups(bottleneck, 1e-3, multiplier=multiplier, weight_decay=0.1)
        )
        for parameter in bottleneck.parameters():
            parameter.grad = torch.zeros_like(parameter)
        before = bottleneck.weight.detach().norm()
        for _ in range(200):
            optimizer.step()
        assert low <= (1 - bottleneck.weight.detach().norm() / before).item() <= high


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_coupled_decay_of_the_product_under_sgd_is_that_of_one_matrix(depth):
    bottleneck = LinearBottleneck(16, depth, gain=1.0, dtype=torch.float64)
    optimizer = torch.optim.SGD(depth_scaled_param_groups(bottleneck, 1e-3, weight_decay=0.1))
    for parameter in bottleneck.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = bottleneck.weight.detach()
    for _ in range(200):
        optimizer.step()
    torch.testing.assert_close(bottleneck.weight.detach(), before * (1 - 1e-4 / depth) ** (200 * depth))
    assert (1 - bottleneck.weight.detach().norm() / before.norm()).item() == pytest.approx(0.0198, abs=5e-4)


def recovered(
    rank: int,
    depth: int,
    *,
    gain: float = 0.03,
    init: str = "orthogonal",
    multiplier="inverse_depth",
    steps: int = 1000,
    weight_decay: float = 0.0,
    reduction: str = "sum",
):
    """Numerical rank of a linear autoencoder's latents, its excess error, and the variance ratio after ``rank``."""
    torch.manual_seed(1)
    module = data.synthetic(rank)
    (train,), (held_out,) = module.train.tensors, module.val.tensors
    encoder, decoder = nn.Linear(64, 32, bias=False), nn.Linear(32, 64, bias=False)
    model = nn.Sequential(encoder, LinearBottleneck(32, depth, gain=gain, init=init), decoder)
    groups = depth_scaled_param_groups(model, 1e-3, multiplier=multiplier, weight_decay=weight_decay)
    optimizer = torch.optim.Adam(groups)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (128,))]
        squared = (model(batch) - batch).square()
        loss = squared.sum(1).mean() if reduction == "sum" else squared.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        spectrum = LatentSpectrum(32)
        spectrum.update(model[:2](held_out))
        deviations = spectrum.compute()
        error = (model(held_out) - held_out).square().sum(1).mean()
        axes = torch.linalg.svd(train, full_matrices=False).Vh[:rank]
        optimal = (held_out - held_out @ axes.T @ axes).square().sum(1).mean()
    ratio = (deviations[rank] / deviations[0]).square().item()
    return numerical_rank(deviations).item(), (error / optimal).item(), ratio


@pytest.mark.parametrize(("rank", "depth"), [(4, 2), (8, 8), (16, 16), (16, 4)])
def test_synthetic_data_is_learned_at_its_own_rank(rank, depth):
    found, excess, ratio = recovered(rank, depth)
    assert found == rank
    assert 0.97 <= excess <= 1.06
    assert ratio < 5e-4


def test_contrasts_without_the_method():
    plain, excess, _ = recovered(8, 0)
    assert plain >= 16
    assert excess < 0.95, "the plain autoencoder fits noise"
    collapsed, excess, _ = recovered(8, 16, init="default", multiplier=1.0)
    assert collapsed < 8
    assert excess > 2


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "depth"), [(4, 2), (8, 4), (16, 16)])
def test_coupled_decay_holds_the_rank_where_it_is_lost_without(rank, depth):
    decay = weight_decay_for_variance_cutoff(0.0077, depth)  # noise has a variance of 0.0025, the weakest signal 0.25
    found, excess, ratio = recovered(rank, depth, gain=1.0, weight_decay=decay, steps=2500)
    assert found == rank
    assert 0.97 <= excess <= 1.06
    assert ratio < 1e-5
    assert recovered(rank, depth, gain=1.0, steps=2500)[0] > rank, "gain 1 without decay reduces nothing"


def test_a_loss_averaged_over_features_wants_the_decay_over_their_number():
    decay = weight_decay_for_variance_cutoff(0.0077, 4)
    options = {"gain": 1.0, "steps": 2500}
    assert recovered(8, 4, weight_decay=decay / 64, reduction="mean", **options)[0] == 8
    assert recovered(8, 4, weight_decay=decay, reduction="mean", **options)[0] < 8
