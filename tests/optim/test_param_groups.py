"""Which parameters train at which learning rate."""

import math

import pytest
import tiny
import torch
from torch import nn

from lightning_rank import LinearBottleneck, depth_scaled_param_groups
from lightning_rank.optim import linear_groups


def test_linear_layers_get_the_learning_rate_over_depth():
    model = tiny.tiny(depth=4)
    base, linear = depth_scaled_param_groups(model, 1e-2, weight_decay=0.1)
    assert (base["name"], base["lr"], base["weight_decay"]) == ("base", 1e-2, 0.1)
    assert (linear["name"], linear["lr"], linear["weight_decay"]) == ("encoder.linear_bottleneck", 2.5e-3, 0.1)
    assert [id(p) for p in linear["params"]] == [id(p) for p in model.encoder.linear_bottleneck.parameters()]


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = nn.ModuleDict({"a": LinearBottleneck(4, 2), "b": LinearBottleneck(4, 8), "c": nn.Linear(4, 4)})
    model["b"].layers[3].requires_grad_(False)
    groups = depth_scaled_param_groups(model, 1.0)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == [
        ("base", 1.0, 2),
        ("a", 0.5, 2),
        ("b", 0.125, 7),
    ]
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_one_multiplier_for_all():
    groups = depth_scaled_param_groups(tiny.tiny(depth=4), 1.0, multiplier=0.7)
    assert groups[1]["lr"] == 0.7


def test_a_tensor_learning_rate_stays_one():
    base, linear = depth_scaled_param_groups(tiny.tiny(depth=4), torch.tensor(1e-2))
    assert isinstance(linear["lr"], torch.Tensor)
    assert linear["lr"] is not base["lr"]
    torch.testing.assert_close(linear["lr"], torch.tensor(2.5e-3))


def test_depth_zero_and_everything_frozen():
    assert [g["name"] for g in depth_scaled_param_groups(tiny.tiny(depth=0), 1.0)] == ["base"]
    model = tiny.tiny(depth=2)
    model.encoder.linear_bottleneck.requires_grad_(False)
    assert [g["name"] for g in depth_scaled_param_groups(model, 1.0)] == ["base"]
    assert [g["name"] for g in depth_scaled_param_groups(model.encoder.linear_bottleneck.requires_grad_(), 1.0)] == [
        "linear_bottleneck"
    ]


def test_names_begin_with_that_of_everything_else_and_are_told_apart():
    names = [group["name"] for group in depth_scaled_param_groups(tiny.tiny(), 1.0, name="enc")]
    assert names == ["enc", "enc/encoder.linear_bottleneck"]
    model = nn.ModuleDict({"base": LinearBottleneck(4, 2), "rest": nn.Linear(4, 4)})
    assert [group["name"] for group in depth_scaled_param_groups(model, 1.0)] == ["base", "base/base"]
    with pytest.raises(TypeError, match="params: expected none, for they are those of module"):
        depth_scaled_param_groups(model, 1.0, params=[])


def test_names_are_those_from_before_compilation():
    model = nn.Sequential(nn.Linear(4, 4), torch.compile(LinearBottleneck(4, 2)))
    assert [group.name for group in linear_groups(model)] == ["1"]


def test_bottlenecks_that_share_a_layer():
    first, second = LinearBottleneck(4, 2), LinearBottleneck(4, 2)
    second.layers[0].weight = first.layers[0].weight
    groups = linear_groups(nn.ModuleList([first, second]))
    assert [len(group.params) for group in groups] == [2, 1]
    third = LinearBottleneck(4, 3)
    third.layers[0].weight = first.layers[0].weight
    with pytest.raises(
        ValueError, match=r"share a parameter to share the multiplier, got 0.5 for '0' and 0.333333 for '1'"
    ):
        linear_groups(nn.ModuleList([first, third]))
    assert len(linear_groups(nn.ModuleList([first, third]), 0.5)) == 2


def test_bad_arguments_are_refused():
    with pytest.raises(
        ValueError, match="module: expected a LinearBottleneck somewhere in Linear, found none; add one"
    ):
        depth_scaled_param_groups(nn.Linear(3, 3), 1.0)
    for bad in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="multiplier: expected 'inverse_depth' or a positive finite number, got"):
            depth_scaled_param_groups(tiny.tiny(), 1.0, multiplier=bad)
    for bad in ("depth", None, True):
        with pytest.raises(TypeError, match="multiplier: expected 'inverse_depth' or a number, got"):
            depth_scaled_param_groups(tiny.tiny(), 1.0, multiplier=bad)
