"""State dicts and checkpoints of other layouts: of version 0.1, without the bottleneck, collapsed."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_rank import (
    DepthScaledLR,
    EffectiveRankMonitor,
    attach_linear_bottleneck,
    collapse_linear_bottleneck,
    load_truncated,
    truncate_linear_bottleneck,
)

# Written by version 0.1: tiny.tiny(depth=3), one epoch of tiny.loader() with DepthScaledLR and EffectiveRankMonitor.
OLD = Path(__file__).parents[1] / "data/attached_0.1.ckpt"
OLD_OUTPUT = [-0.1754785031080246, -0.0401969850063324, -0.23350901921749115, -0.29016217589378357]


def old_state_dict():
    return torch.load(OLD, weights_only=True)["state_dict"]


def plain_state_dict():
    return {key: value for key, value in old_state_dict().items() if "bottleneck" not in key}


@pytest.mark.parametrize(
    "model", [lambda: tiny.tiny(depth=3), lambda: tiny.TinyMixedIn(depth=3)], ids=["attach", "mixin"]
)
def test_a_checkpoint_of_0_1_loads_into_the_new_place(model):
    model = model()
    saved = old_state_dict()
    assert "linear_bottleneck.layers.2.weight" in saved
    model.load_state_dict(saved)
    torch.testing.assert_close(model(tiny.rows(4, seed=7))[0, :4], torch.tensor(OLD_OUTPUT))
    assert "linear_bottleneck.layers.2.weight" in saved, "what was given is as it was"


def test_a_run_of_0_1_is_resumed_with_the_state_of_each_parameter():
    model = tiny.tiny(depth=3)
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), EffectiveRankMonitor()], max_epochs=2)
    found = {}

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            state = trainer.optimizers[0].state
            found.update({name: state[p]["exp_avg"].clone() for name, p in pl_module.named_parameters()})

    trainer.callbacks.append(Look())
    trainer.fit(model, tiny.loader(), tiny.loader(20, 10), ckpt_path=OLD, weights_only=True)
    assert trainer.global_step == 8
    (saved,) = torch.load(OLD, weights_only=True)["optimizer_states"]
    order = ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]
    order += [f"encoder.linear_bottleneck.layers.{k}.weight" for k in range(3)]
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    for name, key in zip(order, keys, strict=True):
        assert torch.equal(found[name], saved["state"][key]["exp_avg"]), name


def test_nested_in_another_module_too():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny.tiny(depth=3)

    outer = Outer()
    outer.load_state_dict({f"net.{key}": value for key, value in old_state_dict().items()})
    torch.testing.assert_close(outer.net(tiny.rows(4, seed=7))[0, :4], torch.tensor(OLD_OUTPUT))


def test_a_child_of_that_name_that_a_model_has_of_its_own_stays_where_it_is():
    def new():
        net = nn.Module()
        net.encoder, net.linear_bottleneck = nn.Linear(10, 6), nn.Linear(6, 6)
        return attach_linear_bottleneck(net, dim=6, depth=2)

    first, second = new(), new()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.linear_bottleneck.weight, first.linear_bottleneck.weight)


def test_beside_a_second_bottleneck_the_first_one_is_meant():
    model = attach_linear_bottleneck(tiny.tiny(depth=3), before="decoder", dim=tiny.DIM, depth=2, allow_missing=True)
    model.load_state_dict(old_state_dict())
    weight = old_state_dict()["linear_bottleneck.layers.2.weight"]
    assert torch.equal(model.encoder.linear_bottleneck.layers[2].weight, weight)


def test_a_collapsed_checkpoint_of_0_1_loads_into_any_depth():
    w = torch.eye(tiny.DIM)
    for k in range(3):
        w = old_state_dict()[f"linear_bottleneck.layers.{k}.weight"] @ w
    model = tiny.tiny(depth=8)
    model.load_state_dict(plain_state_dict() | {"linear_bottleneck.layers.0.weight": w})
    torch.testing.assert_close(model(tiny.rows(4, seed=7))[0, :4], torch.tensor(OLD_OUTPUT), rtol=1e-4, atol=1e-6)
    assert model.encoder.linear_bottleneck.depth == 1


def test_a_truncated_state_dict_of_0_1_loads():
    model, fresh = tiny.tiny(depth=3), tiny.tiny(depth=3)
    truncate_linear_bottleneck(model, torch.randn(50, tiny.DIM), rank=2)
    old = {key.replace("encoder.linear", "linear"): value for key, value in model.state_dict().items()}
    load_truncated(fresh, old)
    torch.testing.assert_close(fresh(tiny.rows()), model(tiny.rows()))


def test_strict_means_strict_and_the_error_says_both_ways():
    model = tiny.tiny(depth=3)
    with pytest.raises(RuntimeError, match=r"Missing key.*strict=False, or attach it with allow_missing=True"):
        model.load_state_dict(plain_state_dict())
    other = tiny.tiny(depth=2)
    with pytest.raises(RuntimeError, match=r'Missing key.*"encoder.linear_bottleneck.layers.2.weight"'):
        model.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"encoder.linear_bottleneck.layers.2.weight"'):
        other.load_state_dict(model.state_dict())


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("way", ["strict=False", "allow_missing=True"])
def test_a_plain_state_dict_loads_where_that_is_allowed(way, assign):
    model = attach_linear_bottleneck(tiny.TinyAutoencoder(), dim=tiny.DIM, depth=2, allow_missing=way != "strict=False")
    own = model.encoder.linear_bottleneck.weight.clone()
    keys = [f"encoder.linear_bottleneck.layers.{k}.weight" for k in range(2)]
    missing = model.load_state_dict(plain_state_dict(), strict=way != "strict=False", assign=assign).missing_keys
    assert missing == (keys if way == "strict=False" else [])
    assert torch.equal(model.encoder.weight, plain_state_dict()["encoder.weight"])
    assert torch.equal(model.encoder.linear_bottleneck.weight, own)
    assert all(isinstance(layer.weight, nn.Parameter) for layer in model.encoder.linear_bottleneck.layers)


def test_a_copy_loads_as_the_original_does():
    model = copy.deepcopy(tiny.tiny(depth=3))
    model.load_state_dict(old_state_dict())
    collapsed = collapse_linear_bottleneck(copy.deepcopy(model))
    fresh = copy.deepcopy(tiny.tiny(depth=5))
    fresh.load_state_dict(collapsed.state_dict())
    torch.testing.assert_close(fresh(tiny.rows()), model(tiny.rows()), rtol=1e-4, atol=1e-5)


def test_a_collapsed_checkpoint_leaves_the_optimizer_a_parameter_that_trains():
    saved, model = tiny.tiny(depth=3), tiny.tiny(depth=4)
    collapse_linear_bottleneck(saved)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.load_state_dict(saved.state_dict())
    (weight,) = model.encoder.linear_bottleneck.parameters()
    torch.testing.assert_close(weight, next(saved.encoder.linear_bottleneck.parameters()), rtol=0, atol=0)
    before = weight.detach().clone()
    model(tiny.rows(7)).sum().backward()
    optimizer.step()
    assert not torch.equal(weight, before)
