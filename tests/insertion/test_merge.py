"""The way back: the bottleneck folded into a layer beside it, class and keys as they were."""

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils import parametrizations, prune

from lightning_rank import (
    LinearBottleneck,
    LinearBottleneckMixin,
    attach_linear_bottleneck,
    collapse_linear_bottleneck,
    merge_linear_bottleneck,
)


class Net(nn.Module):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Encoder(nn.Module):
    def __init__(self, last=nn.Identity):
        super().__init__()
        # Not in the order in which they are called.
        self.out, self.hidden = (
            nn.Sequential(nn.Linear(8, 6), last()) if last is nn.ReLU else nn.Linear(8, 6),
            nn.Linear(10, 8),
        )
        self.latents = None

    def forward(self, x):
        self.latents = self.out(self.hidden(x).tanh())
        return self.latents


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(8, 10), nn.Linear(6, 8)

    def forward(self, z):
        return self.last(torch.relu(self.first(z)))


class Conditional(Decoder):
    """With a condition that may be left out."""

    def __init__(self):
        super().__init__()
        self.condition = nn.Linear(3, 8)

    def forward(self, z, condition=None):
        hidden = self.first(z)
        if condition is not None:
            hidden = hidden + self.condition(condition)
        return self.last(torch.relu(hidden))


class Heads(nn.Module):
    """A mean and a log variance."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_variance = nn.Linear(10, 6), nn.Linear(10, 6)

    def forward(self, x):
        return self.mean(x), self.log_variance(x)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Heads(), nn.Sequential(nn.Linear(6, 10), nn.Sigmoid())

    def forward(self, x):
        mean, log_variance = self.encoder(x)
        return self.decoder(mean + (log_variance / 2).exp() * torch.ones_like(mean))


def relu():
    return nn.Sequential(nn.Linear(10, 6), nn.ReLU())


IN_FRONT = {
    "a layer": (lambda: Net(nn.Linear(10, 6), nn.Linear(6, 10)), {}, (7, 10)),
    "the last step": (lambda: Net(nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 6)), Decoder()), {}, (7, 10)),
    "the last of Sequentials": (
        lambda: Net(nn.Sequential(nn.Linear(10, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 6))), Decoder()),
        {},
        (7, 10),
    ),
    "inside a module": (lambda: Net(Encoder(), Decoder()), {}, (7, 10)),
    "without a bias": (lambda: Net(nn.Linear(10, 6, bias=False), Decoder()), {}, (7, 10)),
    "Conv1d": (lambda: Net(nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 3, 1)), {}, (2, 3, 7)),
    "Conv2d": (lambda: Net(nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1)), nn.ConvTranspose2d(6, 3, 2, 2)), {}, (2, 3, 8, 8)),
    "ConvTranspose3d": (lambda: Net(nn.ConvTranspose3d(3, 6, 2, 2), nn.Conv3d(6, 3, 1)), {}, (2, 3, 2, 2, 3)),
    "one of several outputs": (VAE, {"output": 0}, (7, 10)),
    "before a module, behind a layer": (lambda: Net(nn.Linear(10, 6), nn.Sigmoid()), {"before": "decoder"}, (7, 10)),
}
BEHIND = {
    "a layer": (lambda: Net(relu(), nn.Linear(6, 10)), {}, (7, 10)),
    "the first of Sequentials": (
        lambda: Net(relu(), nn.Sequential(nn.Sequential(nn.Linear(6, 8)), nn.ReLU())),
        {},
        (7, 10),
    ),
    "inside a module": (lambda: Net(relu(), Decoder()), {}, (7, 10)),
    "of a custom encoder": (lambda: Net(Encoder(nn.ReLU), Decoder()), {}, (7, 10)),
    "before a Sequential": (VAE, {"before": "decoder"}, (7, 10)),
    "before a module": (
        lambda: Net(relu(), Decoder()),
        {"before": "decoder"},
        (7, 10),
    ),
    "before a module with an optional argument": (lambda: Net(relu(), Conditional()), {"before": "decoder"}, (7, 10)),
    "Conv2d": (
        lambda: Net(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.Conv2d(6, 3, 3, padding=1)),
        {},
        (2, 3, 8, 8),
    ),
    "ConvTranspose2d": (
        lambda: Net(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.ConvTranspose2d(6, 3, 4, 2, 1)),
        {},
        (2, 3, 8, 8),
    ),
}


def hooks(module):
    return [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_pre_hooks_with_kwargs)
        for m in module.modules()
    ]


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize(
    "case", [*IN_FRONT.values(), *BEHIND.values()], ids=[*IN_FRONT, *(f"behind, {k}" for k in BEHIND)]
)
def test_outputs_stay_and_class_and_keys_are_those_from_before(case, collapsed):
    make, options, size = case
    plain = make()
    net = attach_linear_bottleneck(copy.deepcopy(plain), dim=6, depth=4, gain=0.8, **options)
    x = torch.randn(size)
    expected, before = net(x), plain(x)
    assert not torch.allclose(expected, before)
    if collapsed:
        collapse_linear_bottleneck(net)
    assert merge_linear_bottleneck(net) is net
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert (repr(net), hooks(net)) == (repr(plain), hooks(plain))
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(plain(x), net(x))


class Sampling(Net):
    def forward(self, x):
        mean = self.encoder(x)
        return self.decoder(mean + torch.randn_like(mean))


def test_what_is_drawn_beside_the_latents_stays_where_channels_come_last():
    net = Sampling(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 3, 3)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 9).to(memory_format=torch.channels_last)
    attach_linear_bottleneck(net, dim=6, depth=2, gain=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = net(x)
        torch.manual_seed(1)
        torch.testing.assert_close(merge_linear_bottleneck(net)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", IN_FRONT)
def test_the_layer_in_front_is_preferred(case):
    make, options, _ = IN_FRONT[case]
    net = attach_linear_bottleneck(make(), dim=6, depth=4, gain=0.8, **options)
    decoder = {name: value.clone() for name, value in net.decoder.state_dict().items() if "bottleneck" not in name}
    merge_linear_bottleneck(net)
    assert all(torch.equal(value, decoder[name]) for name, value in net.decoder.state_dict().items())


class Keeping(Encoder):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.seen.append(x)
        self.steps += 1
        return super().forward(x)


def test_reading_a_forward_pass_leaves_nothing_behind():
    net = attach_linear_bottleneck(Net(Keeping(), Decoder()), dim=6, depth=2)
    merge_linear_bottleneck(net)
    assert (net.encoder.latents, net.encoder.seen, net.encoder.steps.item()) == (None, [], 0)
    assert all(module.training for module in net.modules())


def test_a_layer_of_the_module_itself_comes_first_so_that_it_does_the_same_for_every_caller():
    net = attach_linear_bottleneck(Net(nn.Linear(10, 6), Decoder()), before="decoder", dim=6, depth=2, gain=0.5)
    x, z = torch.randn(3, 10), torch.randn(3, 6)
    latents, decoded = net.encoder(x), net.decoder(z)
    merge_linear_bottleneck(net)
    torch.testing.assert_close(net.encoder(x), latents)
    torch.testing.assert_close(net.decoder(z), decoded)


def test_a_trained_lightning_module_is_loaded_by_its_own_class(tmp_path):
    model = tiny.tiny(depth=3)
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(model, tiny.loader())
    expected = model(tiny.rows())
    merge_linear_bottleneck(model)
    trainer.save_checkpoint(tmp_path / "merged.ckpt", weights_only=True)
    loaded = tiny.TinyAutoencoder.load_from_checkpoint(tmp_path / "merged.ckpt")
    torch.testing.assert_close(loaded(tiny.rows()), expected)


def test_where_the_author_calls_it_the_identity_takes_its_place():
    class Explicit(LinearBottleneckMixin, nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(10, 6), nn.Linear(6, 10)
            self.add_linear_bottleneck(dim=6, depth=2, gain=0.5)

        def forward(self, x):
            return self.decoder(self.linear_bottleneck(self.encoder(x)))

    net, x = Explicit(), torch.randn(3, 10)
    expected = net(x)
    torch.testing.assert_close(merge_linear_bottleneck(net)(x), expected)
    assert list(net.state_dict()) == ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), LinearBottleneck(4, depth=8, gain=0.9), nn.Linear(4, 8))
    x = torch.randn(3, 8)
    expected = model(x)
    torch.testing.assert_close(merge_linear_bottleneck(model)(x), expected)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]


def test_several_bottlenecks_and_the_identity():
    net = Net(nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 6)), nn.Linear(6, 10))
    attach_linear_bottleneck(net, "encoder.0", dim=8, depth=2, gain=0.5)
    attach_linear_bottleneck(net, "encoder", dim=6, depth=0)
    x = torch.randn(3, 10)
    expected = net(x)
    torch.testing.assert_close(merge_linear_bottleneck(net)(x), expected)
    assert not any(isinstance(module, LinearBottleneck) for module in net.modules())


class Adapted(nn.Module):
    """As LoRA does it, with dropout."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.dropout, self.added = layer, nn.Dropout(0.5), nn.Linear(6, 6, bias=False)

    def forward(self, x):
        return self.layer(x) + self.added(self.dropout(x))


@pytest.mark.parametrize("take_out", [collapse_linear_bottleneck, merge_linear_bottleneck])
def test_in_training_the_product_is_that_of_evaluation(take_out):
    net = attach_linear_bottleneck(Net(nn.Linear(10, 6), nn.Linear(6, 10)), dim=6, depth=2, gain=0.5)
    layers = net.encoder.linear_bottleneck.layers
    layers[1] = Adapted(layers[1])
    x = torch.randn(3, 10)
    expected = net.eval()(x)
    take_out(net.train())
    assert all(module.training for module in net.modules())
    torch.testing.assert_close(net(x), expected)


class Registered(nn.Module):
    """The decoder before the encoder, which is not the order of the calls."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.ReLU(), nn.Linear(6, 10))
        self.encoder = nn.Linear(10, 6)

    def forward(self, x):
        return self.decoder(self.encoder(x))


IN_A_ROW = {
    "both into the layer behind": (lambda: Net(relu(), nn.Linear(6, 10)), "encoder"),
    "both into the layer in front": (lambda: Net(nn.Linear(10, 6), nn.Tanh()), "encoder"),
    "both into the layer in front, one as a step": (
        lambda: Net(nn.Sequential(nn.Linear(10, 6)), nn.Tanh()),
        "encoder",
    ),
    "both into the layer behind, one of another module": (lambda: Net(Encoder(nn.ReLU), Decoder()), "encoder"),
    "of the module and of its layer": (lambda: Net(Encoder(), Decoder()), "encoder.out"),
    "in another order than they are called": (Registered, "encoder"),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("case", IN_A_ROW)
def test_of_two_bottlenecks_in_a_row_the_one_next_to_the_layer_comes_first(case, first):
    make, after = IN_A_ROW[case]
    other = {"after": "encoder"} if after == "encoder.out" else {"before": "decoder"}
    net = make()
    for place in [{"after": after}, other][:: 1 if first else -1]:
        attach_linear_bottleneck(net, **place, dim=6, depth=2, gain=1.0)
    x = torch.randn(7, 10)
    expected = net(x)
    torch.testing.assert_close(merge_linear_bottleneck(net)(x), expected, rtol=1e-5, atol=1e-5)
    assert list(net.state_dict()) == list(make().state_dict())


def test_a_container_with_a_forward_of_its_own_keeps_what_it_calls():
    class Steps(LinearBottleneckMixin, nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(10, 6), nn.Linear(6, 10))
            self.add_linear_bottleneck(dim=6, depth=2, gain=0.5)

        def forward(self, x):
            return self[1](self.linear_bottleneck(self[0](x)))

    net, x = Steps(), torch.randn(3, 10)
    expected = net(x)
    torch.testing.assert_close(merge_linear_bottleneck(net)(x), expected)


def test_layers_that_are_parametrized_are_passed_over():
    decoder = parametrizations.spectral_norm(nn.Linear(6, 10))
    for net in (
        Net(nn.Linear(10, 6), decoder),
        Net(parametrizations.weight_norm(nn.Linear(10, 6)), nn.Linear(6, 10)),
        Net(nn.Sequential(parametrizations.weight_norm(nn.Linear(10, 6)), nn.ReLU()), nn.Linear(6, 10)),
    ):
        attach_linear_bottleneck(net.eval(), dim=6, depth=2, gain=0.5)
        x = torch.randn(3, 10)
        expected = net(x)
        torch.testing.assert_close(merge_linear_bottleneck(net)(x), expected)


def test_to_ask_a_weight_for_its_type_is_no_use_of_it():
    class Casting(Net):
        def forward(self, x):
            return self.decoder(self.encoder(x.to(self.encoder.weight.dtype)))

    net, x = attach_linear_bottleneck(Casting(nn.Linear(10, 6), nn.Tanh()), dim=6, gain=0.5), torch.randn(3, 10)
    expected = net(x)
    torch.testing.assert_close(merge_linear_bottleneck(net)(x), expected)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.other = nn.Linear(10, 6), nn.Linear(10, 6)
        self.other.weight = self.encoder.weight

    def forward(self, x):
        return self.encoder(x) * self.other(x)


class Twice(Net):
    def forward(self, x):
        latents = self.encoder(x)
        return self.decoder(latents) + latents.sum()


class Choosing(Net):
    def forward(self, x):
        latents = self.encoder(x)
        return self.decoder(latents) if latents.sum() > 0 else latents


class Transposing(nn.Module):
    """Uses the weight of the encoder to decode."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(10, 6)

    def forward(self, x):
        return self.decode(self.encoder(x))

    def decode(self, z):
        return linear(z, self.encoder.weight.t())


class Unreadable(Transposing):
    def forward(self, x):
        assert x.sum() < 1e9
        return super().decode(self.encoder(x))


class Hiding(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.hidden = [encoder]

    def forward(self, z):
        return linear(z, self.hidden[0].weight.t())


def hidden():
    encoder = nn.Linear(10, 6)
    return Net(encoder, Hiding(encoder))


def same_memory():
    net = Net(nn.Linear(10, 6), nn.Linear(6, 10))
    net.decoder.weight.data = net.encoder.weight.data.t()
    return net


class Reaching(Net):
    """Calls a layer of the encoder past it."""

    def forward(self, x):
        return self.decoder(self.encoder(x) + self.encoder[0](-x))


def pruned():
    net = Net(nn.Linear(10, 6), nn.Tanh())
    prune.l1_unstructured(net.encoder, "weight", 0.3)
    return net


def hooked():
    net = Net(nn.Linear(10, 6), nn.Tanh())
    net.encoder.register_forward_hook(lambda module, args, output: output.relu())
    return net


def overridden():
    net = Net(nn.Linear(10, 6), nn.Tanh())
    plain = net.encoder.forward
    net.encoder.forward = lambda x: plain(x).tanh()
    return net


class GivenTwice(Net):
    def forward(self, x):
        latents = self.encoder(x)
        return self.decoder(latents, latents)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, z, context):
        return self.query(z) + self.key(context).tanh()


class Normalizing(nn.Module):
    """Different in evaluation."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 6)

    def forward(self, x):
        latents = self.layer(x)
        return latents if self.training else nn.functional.normalize(latents)


class Asking(nn.Module):
    """Goes another way for what it is given than for what it is not."""

    def __init__(self, given):
        super().__init__()
        self.layer, self.other, self.given = nn.Linear(10, 6), nn.Linear(10, 6), given

    def forward(self, x, context=None):
        if self.given(x, context):
            return self.other(x + context)
        return self.layer(x).tanh()


NOWHERE = {
    "another layer with an argument that is left out": lambda: Net(Asking(lambda x, c: c is not None), nn.Tanh()),
    "another layer for another type": lambda: Net(Asking(lambda x, c: not isinstance(x, torch.Tensor)), nn.Tanh()),
    "a pruned layer": pruned,
    "a layer with a hook": hooked,
    "a forward of the instance": overridden,
    "latents given twice to one module": lambda: GivenTwice(relu(), Attending()),
    "another forward pass in evaluation": lambda: Net(Normalizing(), nn.Tanh()),
    "activations on both sides": lambda: Net(relu(), nn.Sequential(nn.Tanh(), nn.Linear(6, 10))),
    "shared parameters": Tied,
    "parameters in one memory": same_memory,
    "parameters that are used in a forward pass": Transposing,
    "parameters that are used in a forward pass that cannot be read": Unreadable,
    "a layer that another module keeps in a list": hidden,
    "a layer that is called past its module": lambda: Reaching(nn.Sequential(nn.Linear(10, 6)), nn.Tanh()),
    "parametrized layers": lambda: Net(relu(), parametrizations.weight_norm(nn.Linear(6, 10))),
    "a layer with groups": lambda: Net(nn.Conv1d(10, 6, 1, groups=2), nn.Conv1d(6, 10, 1, groups=2)),
    "latents used twice": lambda: Twice(relu(), nn.Linear(6, 10)),
    "a forward pass that cannot be read": lambda: Choosing(relu(), nn.Linear(6, 10)),
    "the same layer twice": lambda: Net(relu(), nn.Sequential(*[nn.Linear(6, 6)] * 2)),
    "a layer of another class": lambda: Net(type("Mine", (nn.Linear,), {})(10, 6), nn.Tanh()),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_where_there_is_no_such_layer_it_says_so_and_nothing_is_changed(case):
    net = attach_linear_bottleneck(NOWHERE[case](), dim=6, depth=2, gain=0.5)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"in front of or behind 'encoder.linear_bottleneck', found none .* depth=1"):
        merge_linear_bottleneck(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert len(before) == len(net.state_dict())


def test_attached_to_the_layer_itself_it_is_merged_where_the_pass_around_cannot_be_read():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.ModuleList([nn.Linear(10, 6), nn.Linear(6, 6)])

        def forward(self, x):
            for _, step in zip(range(len(x)), self.steps, strict=False):
                x = step(x)
            return x

    net, x = Net(Loop(), nn.Sigmoid()), torch.randn(7, 10)
    refused = attach_linear_bottleneck(copy.deepcopy(net), dim=6, depth=2, gain=0.5)
    with pytest.raises(ValueError, match="read without data; attach it to that layer itself"):
        merge_linear_bottleneck(refused)
    attach_linear_bottleneck(net, after="encoder.steps.1", dim=6, depth=2, gain=0.5)
    expected = net(x)
    torch.testing.assert_close(merge_linear_bottleneck(net)(x), expected)


@pytest.mark.parametrize(
    ("make", "axis"), [(lambda: nn.Linear(10, 6), 1), (lambda: nn.Conv1d(10, 6, 1), -1)], ids=["Linear", "Conv1d"]
)
def test_a_layer_whose_features_are_on_another_axis_is_no_place(make, axis):
    net = attach_linear_bottleneck(Net(make(), nn.Tanh()), dim=6, depth=2, feature_axis=axis)
    with pytest.raises(ValueError, match=r"behind 'encoder.linear_bottleneck', found none"):
        merge_linear_bottleneck(net)


def test_bad_modules_are_refused():
    with pytest.raises(ValueError, match="expected a LinearBottleneck somewhere in Linear, got none"):
        merge_linear_bottleneck(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got the LinearBottleneck itself"):
        merge_linear_bottleneck(LinearBottleneck(4))
