"""The linear bottleneck: one function, two ways to compute it, no stale results."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_rank import LinearBottleneck, collapse_linear_bottleneck
from lightning_rank.functional import compose_linear
from lightning_rank.nn import TruncatedBottleneck


def sequential(bottleneck: LinearBottleneck, x: torch.Tensor) -> torch.Tensor:
    for layer in bottleneck.layers:
        x = x @ layer.weight.T
    return x


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("gain", [0.03, 0.1, 1.0, 2.0])
def test_every_singular_value_of_the_product_is_the_gain_at_every_depth(depth, gain):
    values = torch.linalg.svdvals(LinearBottleneck(48, depth, gain=gain).weight.double())
    assert values[0] / values[-1] < 1.01
    assert values[0].item() == pytest.approx(gain, rel=0.01)


def test_default_initialization_is_ill_conditioned_when_deep():
    bottleneck = LinearBottleneck(128, 8, init="default")
    values = torch.linalg.svdvals(compose_linear([layer.weight.double() for layer in bottleneck.layers]))
    assert values[0] / values[-1] > 1e6
    assert bottleneck.layers[0].weight.abs().max() <= 128**-0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_orthogonal_in_every_precision(dtype):
    values = torch.linalg.svdvals(LinearBottleneck(16, 4, gain=0.1, dtype=dtype).weight.double())
    torch.testing.assert_close(values, torch.full_like(values, 0.1), rtol=0.02, atol=0)


@pytest.mark.parametrize("rows", [3, 24], ids=["layer by layer", "composed"])
@pytest.mark.parametrize("depth", [1, 3, 8])
def test_outputs_and_gradients_equal_the_sequential_ones(rows, depth):
    bottleneck = LinearBottleneck(12, depth, gain=0.5, dtype=torch.float64)
    x = torch.randn(rows, 12, dtype=torch.float64, requires_grad=True)
    target = torch.randn(rows, 12, dtype=torch.float64)
    inputs = [x, *bottleneck.parameters()]
    ours, theirs = bottleneck(x), sequential(bottleneck, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    for mine, expected in zip(
        torch.autograd.grad((ours - target).square().sum(), inputs),
        torch.autograd.grad((theirs - target).square().sum(), inputs),
        strict=True,
    ):
        assert (mine - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("rows", [2, 8])
def test_double_backward(rows):
    bottleneck = LinearBottleneck(4, 3, gain=1.0, dtype=torch.float64)
    x = torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(bottleneck, x)


def test_vmap_over_inputs_and_over_weights():
    bottleneck = LinearBottleneck(4, 3, gain=1.0)
    x = torch.randn(5, 7, 4)
    torch.testing.assert_close(torch.func.vmap(bottleneck)(x), bottleneck(x))
    models = [LinearBottleneck(4, 3, gain=1.0).eval() for _ in range(2)]
    stacked, _ = torch.func.stack_module_state(models)
    with torch.no_grad():
        ours = torch.func.vmap(lambda p: torch.func.functional_call(models[0], p, (x,)))(stacked)
        torch.testing.assert_close(ours, torch.stack([model(x) for model in models]))


def test_compiled_equals_eager():
    bottleneck = LinearBottleneck(8, 4)
    compiled = torch.compile(bottleneck, backend="aot_eager", fullgraph=True)
    for rows in (2, 8, 9):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(compiled(x), bottleneck(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), bottleneck(x))


@pytest.mark.parametrize("rows", [8, 64], ids=["layer by layer", "composed"])
@pytest.mark.parametrize("grad", [True, False])
def test_autocast_error_does_not_grow_with_depth(rows, grad):
    bottleneck = LinearBottleneck(32, 16, gain=1.0)
    x = torch.randn(rows, 32)
    exact = sequential(copy.deepcopy(bottleneck).double(), x.double())
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
        output = bottleneck(x)
    assert output.dtype == torch.bfloat16
    assert (output.double() - exact).norm() / exact.norm() < 4e-3


@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 5), -1), ((2, 6, 5), -1), ((2, 5, 3, 4), 1), ((5, 3), 0), ((2, 5, 7), 1)]
)
@pytest.mark.parametrize("rows", ["few", "many"])
def test_features_on_any_axis(shape, axis, rows):
    shape = tuple(8 * n if i == 0 and rows == "many" and axis != 0 else n for i, n in enumerate(shape))
    bottleneck = LinearBottleneck(5, 3, gain=1.0, feature_axis=axis, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    expected = sequential(bottleneck, x.movedim(axis, -1)).movedim(-1, axis)
    torch.testing.assert_close(bottleneck(x), expected)
    assert bottleneck(x).is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(bottleneck(x), expected)


def test_image_latents_are_treated_as_a_1x1_convolution():
    bottleneck = LinearBottleneck(5, 3, feature_axis=None)
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(bottleneck(x), nn.functional.conv2d(x, bottleneck.weight[:, :, None, None]))
    assert bottleneck(torch.randn(2, 9, 5)).shape == (2, 9, 5)


def test_without_an_axis_the_one_that_fits_is_taken_and_two_that_fit_are_refused():
    bottleneck = LinearBottleneck(5, 3, gain=1.0, feature_axis=None)
    for shape in ((2, 5, 3), (2, 5, 3, 4), (2, 5, 3, 4, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(bottleneck(x), (x.movedim(1, -1) @ bottleneck.weight.T).movedim(-1, 1))
    with pytest.raises(
        ValueError, match=r"axis 1 or axis 3: both are 5 wide, .* pass feature_axis=1 or feature_axis=-1"
    ):
        bottleneck(torch.randn(2, 5, 3, 5))


def test_depth_zero_is_the_identity():
    bottleneck = LinearBottleneck(5, 0, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64)
    assert bottleneck(x) is x
    assert torch.equal(bottleneck.weight, torch.eye(5, dtype=torch.float64))
    assert bottleneck.half().weight.dtype == torch.float16
    assert list(bottleneck.state_dict()) == []


def test_collapsed_layer_is_equal():
    bottleneck = LinearBottleneck(6, 5, gain=0.7)
    linear = bottleneck.collapse()
    x = torch.randn(4, 6)
    assert type(linear) is nn.Linear
    assert linear.bias is None
    torch.testing.assert_close(linear(x), bottleneck(x))


@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_layer_of_collapse_is_the_one_that_collapse_linear_bottleneck_leaves(depth, frozen):
    bottleneck = LinearBottleneck(6, depth, gain=0.7).requires_grad_(not frozen).eval()
    alone = bottleneck.collapse()
    (left,) = collapse_linear_bottleneck(bottleneck).layers
    assert type(alone) is type(left) is nn.Linear
    assert torch.equal(alone.weight, left.weight)
    assert (
        (alone.weight.requires_grad, alone.training)
        == (left.weight.requires_grad, left.training)
        == (not frozen, False)
    )
    with torch.no_grad():
        alone.weight.zero_()
    assert left.weight.abs().sum() > 1, "a weight of its own"


# Ways to change weights, most of which move no version counter.
CHANGES = {
    "load_state_dict": lambda b: b.load_state_dict({k: 2 * v for k, v in b.state_dict().items()}),
    "load_state_dict(assign)": lambda b: b.load_state_dict({k: 2 * v for k, v in b.state_dict().items()}, assign=True),
    "in-place edit": lambda b: b.layers[1].weight.mul_(2),
    "edit through .data": lambda b: b.layers[1].weight.data.mul_(2),
    "numpy edit": lambda b: b.layers[1].weight.numpy().__imul__(2),
    "new .data": lambda b: setattr(b.layers[1].weight, "data", torch.randn(6, 6)),
    "new parameter": lambda b: setattr(b.layers[1], "weight", nn.Parameter(torch.randn(6, 6))),
    "new layer": lambda b: b.layers.__setitem__(1, nn.Linear(6, 6, bias=False)),
    "reset_parameters": lambda b: b.reset_parameters(),
    ".to(float64)": lambda b: b.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_no_product_is_kept(change, inference):
    bottleneck = LinearBottleneck(6, 3, gain=1.0).eval()
    x = torch.randn(50, 6)
    with inference():
        bottleneck(x)
    with torch.no_grad():
        CHANGES[change](bottleneck)
    x = x.to(bottleneck.layers[0].weight.dtype)
    with inference():
        torch.testing.assert_close(bottleneck(x), sequential(bottleneck, x))


def test_it_has_no_buffers_and_nothing_in_checkpoints_but_its_weights():
    bottleneck = LinearBottleneck(6, 3)
    with torch.no_grad():
        bottleneck(torch.randn(50, 6))
    assert list(bottleneck.buffers()) == []
    assert list(bottleneck.state_dict()) == ["layers.0.weight", "layers.1.weight", "layers.2.weight"]


def test_copies_are_independent():
    bottleneck = LinearBottleneck(6, 3).eval()
    x = torch.randn(9, 6)
    with torch.no_grad():
        before = bottleneck(x)
        for twin in (copy.deepcopy(bottleneck), pickle.loads(pickle.dumps(bottleneck))):
            assert torch.equal(twin(x), before)
            twin.layers[0].weight.zero_()
            assert torch.equal(twin(x), torch.zeros_like(x))
        assert torch.equal(bottleneck(x), before)


# Layers that are more than their weight: how they come about, and whether the layers' own gradients flow.
def _adapt(layer):
    class Adapted(nn.Module):  # as LoRA adapters are
        def __init__(self):
            super().__init__()
            self.base, self.down, self.up = layer, nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    return Adapted()


def _hooked(layer):
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


def _overridden(layer):
    plain = layer.forward
    layer.forward = lambda x: 3 * plain(x)
    return layer


class _Subclass(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 0.5


def _pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


MORE_THAN_A_WEIGHT = {
    "adapter": _adapt,
    "forward hook": _hooked,
    "forward of the instance": _overridden,
    "forward of a subclass": lambda layer: _Subclass(6, 6, bias=False),
    "bias": lambda layer: nn.Linear(6, 6),
    "pruning": _pruned,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight norm by a hook": lambda layer: torch.nn.utils.weight_norm(layer),
    "spectral norm by a hook": lambda layer: torch.nn.utils.spectral_norm(layer),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", MORE_THAN_A_WEIGHT)
@pytest.mark.parametrize("rows", [2, 24])
def test_layers_that_are_more_than_their_weight_are_called(kind, rows):
    bottleneck = LinearBottleneck(6, 3, gain=1.0)
    for k in (0, 2):
        bottleneck.layers[k] = MORE_THAN_A_WEIGHT[kind](bottleneck.layers[k])
    x, target = torch.randn(rows, 6), torch.randn(rows, 6)
    optimizer = torch.optim.SGD(bottleneck.parameters(), lr=0.05)
    losses = []
    for _ in range(3):  # what a hook computes for one pass serves no second one
        optimizer.zero_grad()
        losses.append((bottleneck(x) - target).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert all(p.grad is not None for p in bottleneck.parameters())
    assert losses[2] < losses[0]
    bottleneck.eval()
    expected = x
    for layer in bottleneck.layers:
        expected = layer(expected)
    torch.testing.assert_close(bottleneck(x), expected)
    if kind != "bias":
        torch.testing.assert_close(x @ bottleneck.weight.T, expected)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("called", [True, False], ids=["called", "composed"])
@pytest.mark.parametrize("batch", [2, 1])
def test_what_comes_out_is_laid_out_in_memory_as_what_goes_in(batch, called, channels_last):
    bottleneck = LinearBottleneck(25, 2, gain=1.0, feature_axis=1)
    if called:
        bottleneck.layers[0].register_forward_hook(lambda module, args, output: output)
    x = torch.randn(batch, 25, 3, 4)
    expected = bottleneck(x)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    torch.testing.assert_close(bottleneck(x), expected)
    assert bottleneck(x).stride() == x.stride()
    truncated = TruncatedBottleneck(25, 3, feature_axis=1)
    assert truncated(x).stride() == x.stride()


def test_called_layers_find_the_features_on_their_axis():
    bottleneck = LinearBottleneck(5, 2, gain=1.0, feature_axis=1)
    plain = copy.deepcopy(bottleneck)
    bottleneck.layers[0].register_forward_hook(lambda module, args, output: output)
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(bottleneck(x), plain(x))
    assert bottleneck(x).is_contiguous()


@pytest.mark.filterwarnings("ignore:torch.(ao.)?quant.* deprecated")
def test_quantized_after_collapsing():
    bottleneck = collapse_linear_bottleneck(LinearBottleneck(6, 3, gain=1.0)).eval()
    x = torch.randn(50, 6)
    expected = bottleneck(x)
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(bottleneck), {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantized[0].layers[0], nn.Linear)
    assert (quantized(x) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_a_collapsed_state_dict_loads_into_any_depth(depth):
    collapsed = collapse_linear_bottleneck(LinearBottleneck(6, 4, gain=0.7))
    bottleneck = LinearBottleneck(6, depth, dtype=torch.float64)
    bottleneck.load_state_dict(collapsed.state_dict())
    x = torch.randn(9, 6, dtype=torch.float64)
    torch.testing.assert_close(bottleneck(x), collapsed(x.float()).double(), rtol=1e-4, atol=1e-5)
    assert (bottleneck.depth, list(bottleneck.state_dict())) == (1, ["layers.0.weight"])
    assert bottleneck.layers[0].weight.requires_grad


def test_frozen_layers_stay_frozen_when_a_collapsed_state_dict_is_loaded():
    bottleneck = LinearBottleneck(6, 3).requires_grad_(False)
    bottleneck.load_state_dict(collapse_linear_bottleneck(LinearBottleneck(6, 2)).state_dict())
    assert not bottleneck.layers[0].weight.requires_grad


def test_meta_device_then_reset_parameters():
    with torch.device("meta"):
        bottleneck = LinearBottleneck(8, 4, gain=0.5)
    assert bottleneck(torch.empty(3, 8, device="meta")).shape == (3, 8)
    bottleneck.to_empty(device="cpu").reset_parameters()
    torch.testing.assert_close(torch.linalg.svdvals(bottleneck.weight), torch.full((8,), 0.5))


def test_materialized_layer_by_layer_it_is_orthogonal_too():
    with torch.device("meta"):
        bottleneck = LinearBottleneck(8, 4, gain=0.5)
    for module in bottleneck.to_empty(device="cpu").modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.testing.assert_close(torch.linalg.svdvals(bottleneck.weight), torch.full((8,), 0.5))


def test_loads_into_the_layers_of_irmae():
    irmae = nn.Sequential(*[nn.Linear(6, 6, bias=False) for _ in range(3)])
    bottleneck = LinearBottleneck(6, 3)
    bottleneck.layers.load_state_dict(irmae.state_dict())
    x = torch.randn(4, 6)
    torch.testing.assert_close(bottleneck(x), irmae(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim: expected 1 or more, got 0"),
        ({"dim": 4.0}, TypeError, r"dim: expected an int, got float \(4.0\)"),
        ({"depth": -1}, ValueError, "depth: expected 0 or more, got -1"),
        ({"depth": True}, TypeError, "depth: expected an int, got bool"),
        ({"gain": 0}, ValueError, "gain: expected a positive finite number, got 0"),
        ({"gain": -1.0}, ValueError, "gain: expected a positive finite number, got -1.0"),
        ({"gain": math.nan}, ValueError, "gain: expected a positive finite number, got nan"),
        ({"gain": "1"}, TypeError, "gain: expected a number, got str"),
        ({"init": "xavier"}, ValueError, "init: expected one of 'orthogonal', 'default', got 'xavier'"),
        ({"feature_axis": "last"}, TypeError, "feature_axis: expected an int or None, got str"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        LinearBottleneck(**{"dim": 4, "depth": 2} | arguments)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize(
    ("latents", "error", "message"),
    [
        (torch.ones(2, 5), ValueError, r"input: expected 4 features on axis 1, got shape \(2, 5\); set dim"),
        (torch.ones(2, 4, dtype=torch.int64), TypeError, "input: expected a real floating-point tensor, got .*int64"),
        (torch.ones(2, 4, dtype=torch.complex64), TypeError, "input: expected a real .* got .*complex64"),
        ([1.0], TypeError, "input: expected a real floating-point tensor, got list"),
    ],
)
def test_bad_inputs_are_refused(depth, latents, error, message):
    with pytest.raises(error, match=message):
        LinearBottleneck(4, depth)(latents)


@pytest.mark.parametrize("rows", [2, 9])
def test_autocast_leaves_float64_as_it_is(rows):
    bottleneck, latents = LinearBottleneck(4, 2, dtype=torch.float64), torch.randn(rows, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            bottleneck(latents).dtype == torch.nn.functional.linear(latents, bottleneck.weight).dtype == torch.float64
        )


def test_collapsed_in_training_dropout_in_a_layer_is_no_part_of_the_matrix():
    bottleneck = LinearBottleneck(4, 2)
    bottleneck.layers[0] = torch.nn.Sequential(bottleneck.layers[0], torch.nn.Dropout(0.5))
    expected = bottleneck.layers[1].weight @ bottleneck.layers[0][0].weight
    bottleneck.layers[1].eval()
    torch.testing.assert_close(bottleneck.collapse().weight, expected)
    assert [layer.training for layer in bottleneck.layers] == [True, False], "as it was"
    bottleneck.layers[1] = torch.nn.Linear(3, 4)  # does not fit
    with pytest.raises(RuntimeError):
        bottleneck.collapse()
    assert all(layer.training for layer in bottleneck.layers)


def test_a_missing_axis_is_named():
    with pytest.raises(ValueError, match="feature_axis: expected an axis of a tensor with 2 axes, got 2"):
        LinearBottleneck(4, 2, feature_axis=2)(torch.ones(3, 4))


def test_shown_with_its_settings():
    assert "dim=4, depth=2, gain=0.1, init='orthogonal'" in repr(LinearBottleneck(4, 2))
    assert "init='default', feature_axis=1" in repr(LinearBottleneck(4, 2, init="default", feature_axis=1))
