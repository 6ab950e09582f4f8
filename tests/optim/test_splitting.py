"""Groups that the user edits after the split: every parameter is stepped once, at the learning rate of its group."""

import pytest
import torch
from torch import nn

from lightning_rank.optim._splitting import SplitOptimizer
from lightning_rank.optim.param_groups import LinearGroup


def parameters(count):
    return [nn.Parameter(torch.zeros(2)) for _ in range(count)]


def rates(split, params):
    """How far one step of SGD moves each parameter along a gradient of one."""
    before = [parameter.detach().clone() for parameter in params]
    for parameter in params:
        parameter.grad = torch.ones_like(parameter)
    split.optimizer.step()
    return [round(float((old - new).detach()[0]), 6) for old, new in zip(before, params, strict=True)]


@pytest.fixture
def split():
    """Two groups of one parameter and one linear layer each, at learning rates of 1 and 2."""
    first, second, *layers = parameters(4)
    groups = [{"params": [first, layers[0]], "lr": 1.0}, {"params": [second, layers[1]], "lr": 2.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    split = SplitOptimizer(optimizer, [LinearGroup("linear", 4, 0.25, layers)])
    split.all = [first, second, *layers]
    assert rates(split, split.all) == [1.0, 2.0, 0.25, 0.5]
    return split


def test_parameters_put_into_a_group_in_place():
    first, *layers = parameters(3)
    split = SplitOptimizer(torch.optim.SGD([first, layers[0]], lr=1.0), [LinearGroup("linear", 4, 0.25, layers)])
    split.groups[0]["params"].extend(layers[1:])
    assert rates(split, [first, *layers]) == [1.0, 0.25, 0.25]
    assert [len(group["params"]) for group in split.groups] == [1, 1, 1]


def test_parameters_of_a_group_given_anew_are_stepped_once(split):
    split.groups[0]["params"] = [split.all[0], *split.all[2:]]
    assert rates(split, split.all) == [1.0, 2.0, 0.25, 0.25]
    assert [len(group["params"]) for group in split.groups] == [1, 1, 2]
    assert [group["depth_partner"] for group in split.linear_groups] == [0]


def test_a_group_that_is_removed_takes_its_linear_layers_along(split):
    split.groups.pop(0)
    assert rates(split, split.all) == [0.0, 2.0, 0.0, 0.5]
    assert [group["depth_partner"] for group in split.linear_groups] == [0]


def test_a_linear_group_is_not_removed_without_its_partner(split):
    split.groups.pop()
    assert rates(split, split.all) == [1.0, 2.0, 0.25, 0.5]


def test_groups_in_another_order_keep_their_partners(split):
    split.groups.sort(key=lambda group: -group["lr"])
    split.groups[0]["lr"] = 4.0
    assert rates(split, split.all) == [1.0, 4.0, 0.25, 1.0]
    assert [group["depth_partner"] for group in split.linear_groups] == [0, 1]
    assert [group["lr"] for group in split.groups] == [4.0, 1.0, 1.0, 0.25]


def test_names_of_linear_groups_are_told_apart():
    first, *layers = parameters(3)
    groups = [{"params": [first, layers[0]], "name": "base"}, {"params": [], "name": "linear"}]
    split = SplitOptimizer(torch.optim.SGD(groups, lr=1.0), [LinearGroup("linear", 4, 0.25, layers)])
    split.groups[0]["params"].append(layers[1])
    split.tie()
    assert [group["name"] for group in split.groups] == ["base", "linear", "base/linear", "base/linear/2"]


class Keywords(torch.optim.Optimizer):
    def __init__(self, params, lr=1.0, **options):
        super().__init__(params, {"lr": lr, **options})


class Counting(torch.optim.Optimizer):
    def __init__(self, params, lr=1.0, weight_decay=0.0, **options):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "count": 0, **options})


def test_what_an_optimizer_takes_as_any_keyword_is_followed_if_it_names_nothing():
    for cls, key, expected in (
        (Keywords, "weight_decay", 0.5),
        (Counting, "weight_decay", 0.5),
        (Counting, "count", 0),
    ):
        first, layer = parameters(2)
        split = SplitOptimizer(cls([first, layer], weight_decay=0.1), [LinearGroup("linear", 4, 0.25, [layer])])
        split.groups[0][key] = 0.5
        split.tie()
        assert [group[key] for group in split.groups] == [0.5, expected]


def test_what_a_base_class_takes_as_an_argument_is_followed():
    class Passing(torch.optim.SGD):
        def __init__(self, params, **options):
            super().__init__(params, **options)

    first, layer = parameters(2)
    split = SplitOptimizer(Passing([first, layer], lr=1.0), [LinearGroup("linear", 4, 0.25, [layer])])
    split.groups[0]["weight_decay"] = 0.5
    split.tie()
    assert [group["weight_decay"] for group in split.groups] == [0.5, 0.5]
