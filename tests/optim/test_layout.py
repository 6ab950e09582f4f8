"""Whatever the layout in which an optimizer was saved, each parameter has its own state back."""

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_rank.optim._splitting import SplitOptimizer
from lightning_rank.optim.param_groups import LinearGroup

PLACES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, "a", "b"])), min_size=1, max_size=12)
ONE_SHAPE = (2,)  # so that a state that goes astray is not found by its shape


def split(places):
    """Parameters by (group of the user, bottleneck), in an optimizer with momenta that tell whose they are."""
    parameters = [nn.Parameter(torch.full(ONE_SHAPE, float(index))) for index in range(len(places))]
    held = sorted({group for group, _ in places})
    groups = [{"params": [p for p, (g, _) in zip(parameters, places, strict=True) if g == group]} for group in held]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    linear = [
        LinearGroup(name, 2, 0.5, [p for p, (_, owner) in zip(parameters, places, strict=True) if owner == name])
        for name in ("a", "b")
    ]
    return parameters, optimizer, linear


def trained(places):
    parameters, optimizer, linear = split(places)
    for parameter in parameters:
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return optimizer, linear


def right_behind(state_dict):
    """The layout of 0.1."""
    state_dict = copy.deepcopy(state_dict)
    users = [group for group in state_dict["param_groups"] if "depth_partner" not in group]
    linear = [group for group in state_dict["param_groups"] if "depth_partner" in group]
    ordered = []
    for position, user in enumerate(users):
        ordered += [user, *(group for group in linear if group["depth_partner"] == position)]
    for group in linear:
        del group["depth_partner"]
    new = {key: index for index, key in enumerate(key for group in ordered for key in group["params"])}
    for group in ordered:
        group["params"] = [new[key] for key in group["params"]]
    return {"state": {new[key]: value for key, value in state_dict["state"].items()}, "param_groups": ordered}


@given(PLACES, st.sampled_from(["unsplit", "0.1", "now"]))
def test_each_parameter_has_its_state_back(places, layout):
    saved, linear = trained(places)
    if layout != "unsplit":
        SplitOptimizer(saved, linear)
    state_dict = saved.state_dict()
    parameters, optimizer, linear = split(places)
    SplitOptimizer(optimizer, linear)
    optimizer.load_state_dict(right_behind(state_dict) if layout == "0.1" else state_dict)
    for index, parameter in enumerate(parameters):
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], torch.full(ONE_SHAPE, float(index)))
    partners = [group.get("depth_partner") for group in optimizer.param_groups]
    users = partners.count(None)
    assert partners == [None] * users + sorted(partners[users:])


@given(PLACES)
def test_the_users_groups_come_back_whole_and_in_their_order(places):
    _, optimizer, linear = split(places)
    given_groups = [list(group["params"]) for group in optimizer.param_groups]
    optimizer_is = SplitOptimizer(optimizer, linear)
    after = [list(group["params"]) for group in optimizer.param_groups]
    with optimizer_is.users_groups():
        for group, before in zip(optimizer.param_groups, given_groups, strict=True):
            assert [*map(id, group["params"])] == [*map(id, before)]
    assert [[*map(id, group["params"])] for group in optimizer.param_groups] == [[*map(id, g)] for g in after]
