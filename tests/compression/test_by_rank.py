"""What is measured at each rank is what the truncated module gives; the module is left as it was."""

import copy

import pytest
import torch
from test_truncation import DIM, SHAPES, attached
from torch import nn

from lightning_rank import truncate_linear_bottleneck
from lightning_rank.compression import measure_by_rank


def squared_error(module: nn.Module, batches: list) -> float:
    with torch.no_grad():
        errors = torch.cat([(module(x) - x).flatten(1).square().sum(1) for x, *_ in batches])
    return errors.double().mean().item()


def batches_of(shape, parts=3):
    return [(x, torch.zeros(len(x))) for x in torch.randn(shape).chunk(parts)]


@pytest.mark.parametrize("kind", SHAPES)
def test_each_rank_is_that_of_the_truncated_module(kind):
    make, shape = SHAPES[kind]
    net, batches = make(), batches_of(shape)
    errors = measure_by_rank(net, batches)
    assert list(errors) == list(range(1, DIM + 1))
    assert errors[DIM] == pytest.approx(squared_error(net, batches), rel=1e-6)
    for rank in (1, 3, DIM):
        cut = copy.deepcopy(net)
        truncate_linear_bottleneck(cut, batches, rank=rank)
        assert errors[rank] == pytest.approx(squared_error(cut, batches), rel=3e-6), rank
    assert len({f"{error:.9g}" for error in errors.values()}) == DIM


def test_error_is_summed_over_features_and_averaged_over_samples_of_all_batches():
    net = nn.Sequential(nn.Identity(), attached().encoder.linear_bottleneck, nn.Identity())
    with torch.no_grad():
        net[1].layers[0].weight.copy_(torch.eye(DIM))
        for layer in net[1].layers[1:]:
            layer.weight.copy_(torch.eye(DIM))
    rows = torch.cat([torch.diag(torch.arange(1.0, DIM + 1)), -torch.diag(torch.arange(1.0, DIM + 1))])
    found = measure_by_rank(net, [rows[:2], rows[2:]])
    # Of the axes of lengths 1 to 6, each met twice in twelve rows, the shortest are lost first.
    assert found == pytest.approx({rank: sum(k**2 for k in range(1, DIM - rank + 1)) / 6 for rank in range(1, DIM + 1)})


@pytest.mark.parametrize("latents", [True, False])
def test_a_measure_of_ones_own_sees_the_cut_latents(latents):
    net, batches = attached(), batches_of((300, 10))
    z = torch.cat([_latents(net, x) for x, _ in batches])

    def rank_of(module):
        return int(torch.linalg.matrix_rank(_latents(module, batches[0][0]) - z.mean(0), rtol=1e-4))

    found = measure_by_rank(net, z if latents else batches, rank_of, ranks=[4, 1, 2])
    assert list(found.items()) == [(4, 4), (1, 1), (2, 2)]


def _latents(module, x):
    """As a hook of one's own takes them."""
    seen = []
    hook = module.encoder.linear_bottleneck.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        module(x)
    hook.remove()
    return seen[0]


def test_a_hook_that_was_there_before_sees_the_cut_latents():
    net, batches = attached(), batches_of((300, 10))
    seen = []
    net.encoder.linear_bottleneck.register_forward_hook(lambda module, args, output: seen.append(output))
    measure_by_rank(net, batches, lambda module: module(batches[0][0]), ranks=[2])
    assert torch.linalg.matrix_rank(seen[-1] - seen[-1].mean(0), rtol=1e-4) == 2
    assert torch.linalg.matrix_rank(seen[0] - seen[0].mean(0), rtol=1e-4) == DIM, "directions are those of all"


def state(module):
    hooks = [len(child._forward_hooks) for child in module.modules()]
    return (
        hooks,
        [child.training for child in module.modules()],
        copy.deepcopy(module.state_dict()),
        list(module.modules()),
    )


def assert_unchanged(module, before):
    hooks, modes, tensors, children = state(module)
    assert (hooks, modes) == before[:2]
    assert all(map(torch.equal, tensors.values(), before[2].values()))
    assert all(child is other for child, other in zip(children, before[3], strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_the_module_is_left_as_it_was(fails):
    net, batches = attached().train(), batches_of((300, 10))
    net.decoder.eval()
    before, seen = state(net), []

    def measure(module):
        seen.append(module.training)
        module.train()
        if fails and len(seen) == 2:
            raise RuntimeError("as it happens")

    if fails:
        with pytest.raises(RuntimeError, match="as it happens"):
            measure_by_rank(net, batches, measure)
    else:
        measure_by_rank(net, batches, measure)
    assert seen == [False] * (2 if fails else DIM)
    assert_unchanged(net, before)


def test_a_measure_may_use_gradients_and_the_error_makes_none():
    net, batches = attached(), batches_of((300, 10))

    def slope(module):
        x = batches[0][0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(x).square().sum(), x)
        return int(torch.linalg.matrix_rank(gradient, rtol=1e-4))

    assert measure_by_rank(net, batches, slope, ranks=[1, 3]) == {1: 1, 3: 3}
    assert isinstance(measure_by_rank(net, batches, ranks=[1])[1], float)


def test_batches_may_be_gone_through_once_if_nothing_is_reconstructed():
    net, batches = attached(), batches_of((300, 10))
    assert measure_by_rank(net, iter(batches), lambda module: 5, ranks=[1]) == {1: 5}
    with pytest.raises(ValueError, match="data: expected batches that can be gone through once for each rank"):
        measure_by_rank(net, iter(batches))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ranks": [0]}, ValueError, "ranks: expected 1 to 6, the width of the latents, got 0"),
        ({"ranks": [7]}, ValueError, "ranks: expected 1 to 6, the width of the latents, got 7"),
        ({"ranks": [2.0]}, TypeError, r"ranks: expected ints, got float \(2\.0\)"),
        ({"ranks": 3}, TypeError, r"ranks: expected ints or None, got int \(3\)"),
        ({"measure": "error"}, TypeError, "measure: expected a function of the module or None, got str"),
        ({"data": 3}, TypeError, "data: expected latents or a dataloader"),
        (
            {"data": torch.randn(9, DIM)},
            ValueError,
            "measure: expected a function of the module where data are latents",
        ),
        ({"data": []}, ValueError, "data: expected one row or more, got none"),
        ({"module": nn.Linear(2, 2)}, ValueError, "module: expected a LinearBottleneck"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(arguments, error, message):
    net = attached().train()
    before = state(net)
    with pytest.raises(error, match=message):
        measure_by_rank(**({"module": net, "data": batches_of((30, 10))} | arguments))
    assert_unchanged(net, before)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: (x, x), TypeError, "expected a batch to be mapped to its reconstruction, got tuple; pass measure"),
        (
            lambda x: x[:, :1],
            ValueError,
            r"expected a reconstruction of shape \(100, 10\), got \(100, 1\); pass measure",
        ),
    ],
)
def test_a_module_that_does_not_reconstruct_needs_a_measure(output, error, message):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = attached()

        def forward(self, x):
            return output(self.net(x))

    with pytest.raises(error, match=message):
        measure_by_rank(Wrapped(), batches_of((300, 10)))


def test_batches_that_come_once_are_refused_though_they_can_be_asked_again():
    class Once:
        def __init__(self):
            self.batches = iter(batches_of((30, 10)))

        def __iter__(self):
            return self.batches

    with pytest.raises(ValueError, match="gone through once for each rank, got Once; pass the dataloader itself"):
        measure_by_rank(attached(), Once())


class _Noisy(nn.Module):
    """A decoder that adds what it draws."""

    def forward(self, z):
        return z + torch.randn_like(z)


def test_what_is_drawn_is_the_same_at_each_rank_and_leaves_the_random_state_as_it_was():
    net = nn.Sequential(nn.Identity(), attached().encoder.linear_bottleneck, _Noisy())
    batches = [torch.randn(50, DIM)]
    torch.manual_seed(3)
    errors = measure_by_rank(net, batches, ranks=[2, 4, 2])
    drawn = torch.randn(3)
    torch.manual_seed(3)
    again = measure_by_rank(net, batches, ranks=[4])
    assert errors[4] == again[4]
    torch.manual_seed(3)
    net(batches[0])  # the moments are taken of one pass
    assert torch.equal(torch.randn(3), drawn)
