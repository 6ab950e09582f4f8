"""A bottleneck put into an autoencoder that has none, without losing anything it had."""

import copy
import pickle
from collections import OrderedDict
from dataclasses import InitVar, dataclass, field, fields
from typing import NamedTuple

import pytest
import torch
from processes import in_processes
from torch import nn

from lightning_rank import (
    LinearBottleneck,
    attach_linear_bottleneck,
    collapse_linear_bottleneck,
    merge_linear_bottleneck,
)


class Net(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Encoder(nn.Module):
    """Neither a layer nor a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(10, 8), nn.Linear(8, 6)

    def forward(self, x):
        return self.out(self.hidden(x).tanh())


def dense() -> Net:
    return Net(nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 6)), nn.Linear(6, 10))


def applied(weight: torch.Tensor, latents: torch.Tensor, axis: int) -> torch.Tensor:
    return (latents.movedim(axis, -1) @ weight.T).movedim(-1, axis)


# How the model is made, the size of its input, the axis of its features, and where the bottleneck goes.
HOSTS = {
    "a Sequential": (dense, (7, 10), -1, "encoder.linear_bottleneck"),
    "tokens": (dense, (2, 7, 10), -1, "encoder.linear_bottleneck"),
    "a layer": (lambda: Net(nn.Linear(10, 6), nn.Linear(6, 10)), (7, 10), -1, "encoder.linear_bottleneck"),
    "a module": (lambda: Net(Encoder(), nn.Linear(6, 10)), (7, 10), -1, "encoder.linear_bottleneck"),
    "Sequentials in a Sequential": (
        lambda: Net(
            nn.Sequential(nn.Sequential(nn.Linear(10, 8)), nn.Sequential(nn.ReLU(), nn.Linear(8, 6))), nn.Linear(6, 10)
        ),
        (7, 10),
        -1,
        "encoder.linear_bottleneck",
    ),
    "Conv1d": (lambda: Net(nn.Conv1d(3, 6, 1), nn.Conv1d(6, 3, 1)), (2, 3, 6), 1, "encoder.linear_bottleneck"),
    "Conv2d": (
        lambda: Net(nn.Conv2d(3, 6, 2, 2), nn.ConvTranspose2d(6, 3, 2, 2)),
        (2, 3, 8, 12),
        1,
        "encoder.linear_bottleneck",
    ),
    "Conv3d": (
        lambda: Net(
            nn.Sequential(nn.Conv3d(3, 6, 1), nn.BatchNorm3d(6), nn.ReLU(), nn.Dropout(), nn.MaxPool3d(2)),
            nn.ConvTranspose3d(6, 3, 2, 2),
        ),
        (2, 3, 4, 4, 12),
        1,
        "encoder.linear_bottleneck",
    ),
}


@pytest.mark.parametrize("kind", HOSTS)
def test_the_output_passes_through_the_bottleneck_once(kind):
    make, size, axis, name = HOSTS[kind]
    net = make().eval()
    x = torch.randn(size)
    latents, keys = net.encoder(x), list(net.state_dict())
    assert attach_linear_bottleneck(net, dim=6, depth=3, gain=0.5) is net
    bottleneck = net.get_submodule(name)
    assert isinstance(bottleneck, LinearBottleneck)
    assert set(net.state_dict()) == {*keys, *(f"{name}.layers.{k}.weight" for k in range(3))}
    expected = applied(bottleneck.weight, latents, axis)
    torch.testing.assert_close(net.encoder(x), expected)
    torch.testing.assert_close(net(x), net.decoder(expected))


# The same in front of a module, where "decoder" may be reached through more than one call.
TAKERS = {
    "a Sequential": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 10)), -1, "decoder.0.linear_bottleneck"),
    "Sequentials in a Sequential": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 8)), nn.Linear(8, 10)),
        -1,
        "decoder.0.0.linear_bottleneck",
    ),
    "a layer": (lambda: nn.Linear(6, 10), -1, "decoder.linear_bottleneck"),
}


@pytest.mark.parametrize("kind", TAKERS)
def test_the_input_passes_through_the_bottleneck_once(kind):
    make, axis, name = TAKERS[kind]
    net = Net(nn.Linear(10, 6), make())
    x = torch.randn(7, 10)
    latents, keys = net.encoder(x), list(net.state_dict())
    plain = copy.deepcopy(net.decoder)
    attach_linear_bottleneck(net, before="decoder", dim=6, depth=3, gain=0.5)
    assert set(net.state_dict()) == {*keys, *(f"{name}.layers.{k}.weight" for k in range(3))}
    torch.testing.assert_close(net(x), plain(applied(net.get_submodule(name).weight, latents, axis)))


def test_before_a_convolution_the_channels_are_the_features():
    net = Net(nn.Identity(), nn.Conv2d(6, 3, 3))
    x = torch.randn(2, 6, 5, 6)
    plain = copy.deepcopy(net.decoder)
    attach_linear_bottleneck(net, before="decoder", dim=6, depth=2, gain=0.5)
    torch.testing.assert_close(net(x), plain(applied(net.decoder.linear_bottleneck.weight, x, 1)))


class VAE(nn.Module):
    """Latents that no module returns: a sample, drawn in a method."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(10, 12), nn.Sequential(nn.Linear(6, 10), nn.Sigmoid())

    def encode(self, x):
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return torch.distributions.Normal(mean, (log_variance / 2).exp())

    def forward(self, x):
        return self.decoder(self.encode(x).rsample())


def test_before_reaches_a_sample():
    vae = attach_linear_bottleneck(VAE(), before="decoder", dim=6, depth=2, gain=0.5)
    x = torch.randn(3, 10)
    torch.manual_seed(1)
    output = vae(x)
    torch.manual_seed(1)
    z = vae.encode(x).rsample()
    layer = vae.decoder[0]
    expected = (z @ layer.linear_bottleneck.weight.T @ layer.weight.T + layer.bias).sigmoid()
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert all(p.grad is not None for p in vae.parameters())


class Pair(NamedTuple):
    latents: torch.Tensor
    count: int


@dataclass
class Record:
    latents: torch.Tensor
    mask: torch.Tensor


class ModelOutput(OrderedDict):
    """As in transformers: entries are attributes and have positions, too."""

    def __getattr__(self, name):
        return self[name]


@dataclass
class Fields(OrderedDict):
    """A dataclass whose fields are entries, too, as far as they are there; it is so in transformers."""

    latents: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    loss: torch.Tensor | None = None

    def __post_init__(self):
        entries = {each.name: getattr(self, each.name) for each in fields(self)}
        self.update({name: entry for name, entry in entries.items() if entry is not None})

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Returning(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.layer, self.form = nn.Linear(10, 6), form

    def forward(self, x):
        return self.form(self.layer(x))


MASK = torch.ones(7, 6)
FORMS = {
    "tuple, by index": (lambda z: (MASK, z), 1, lambda out: out[1]),
    "tuple, counted from the end": (lambda z: (MASK, z), -1, lambda out: out[1]),
    "list": (lambda z: [z, MASK], 0, lambda out: out[0]),
    "named tuple, by name": (lambda z: Pair(z, 3), "latents", lambda out: out.latents),
    "named tuple, the only tensor": (lambda z: Pair(z, 3), None, lambda out: out.latents),
    "dict": (lambda z: {"mask": MASK, "latents": z}, "latents", lambda out: out["latents"]),
    "dict, beside integers": (lambda z: {"index": torch.arange(7), "z": z}, None, lambda out: out["z"]),
    "dataclass": (lambda z: Record(z, MASK), "latents", lambda out: out.latents),
    "model output, by key": (lambda z: ModelOutput(z=z, mask=MASK), "z", lambda out: out["z"]),
    "model output, by position": (lambda z: ModelOutput(mask=MASK, z=z), 1, lambda out: out["z"]),
    "mapping and dataclass, by key": (lambda z: Fields(z, MASK), "latents", lambda out: out.latents),
    "mapping and dataclass, by position": (lambda z: Fields(z, MASK), 0, lambda out: out["latents"]),
    "nested": (lambda z: {"states": (MASK, z)}, ("states", 1), lambda out: out["states"][1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_of_several_outputs_the_one_that_is_meant_passes_and_the_rest_is_as_it_came(form):
    make, output, get = FORMS[form]
    net = Net(Returning(make), nn.Linear(6, 10))
    x = torch.randn(7, 10)
    before = net.encoder(x)
    attach_linear_bottleneck(net, dim=6, depth=2, gain=0.5, output=output)
    after = net.encoder(x)
    assert type(after) is type(before)
    torch.testing.assert_close(get(after), get(before) @ net.encoder.linear_bottleneck.weight.T)
    rest = after.values() if isinstance(after, dict) else vars(after).values() if form == "dataclass" else after
    assert any(entry is MASK for entry in rest) or form.startswith(("named", "dict, beside", "nested"))


DYNAMO = "ignore:The .grad attribute of a Tensor that is not a leaf"  # a warning of its own


@pytest.mark.filterwarnings(DYNAMO)
@pytest.mark.parametrize("form", [form for form in FORMS if "model output" not in form])  # a dict of its own kind
def test_hooks_are_compiled_with_their_module(form):
    make, output, get = FORMS[form]
    net = attach_linear_bottleneck(Net(Returning(make), nn.Linear(6, 10)), dim=6, depth=2, gain=0.5, output=output)
    x = torch.randn(7, 10)
    compiled = torch.compile(net.encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(get(compiled(x)), get(net.encoder(x)))
    assert type(compiled(x)) is type(net.encoder(x))


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 10)

    def forward(self, label, latents, *, scale):
        return self.layer(latents) * scale + label


@pytest.mark.filterwarnings(DYNAMO)
@pytest.mark.parametrize("output", [1, "latents"])
@pytest.mark.parametrize("by_name", [True, False])
def test_of_several_arguments_the_one_that_is_meant_passes(output, by_name):
    net = Net(nn.Identity(), Conditional())
    label, z, scale = torch.randn(3, 1), torch.randn(3, 6), torch.tensor([2.0])
    plain = copy.deepcopy(net.decoder)
    attach_linear_bottleneck(net, before="decoder", dim=6, depth=2, gain=0.5, output=output)
    expected = plain(label, z @ net.decoder.linear_bottleneck.weight.T, scale=scale)
    for decoder in (net.decoder, torch.compile(net.decoder, backend="eager", fullgraph=True)):
        got = decoder(label, latents=z, scale=scale) if by_name else decoder(label, z, scale=scale)
        torch.testing.assert_close(got, expected)


def test_several_tensors_are_refused_until_it_is_said_which():
    net = Net(nn.LSTM(10, 6, batch_first=True), nn.Linear(6, 10))
    attach_linear_bottleneck(net, dim=6, depth=2)
    with pytest.raises(ValueError, match=r"output of LSTM: .* at 0, \(1, 0\), \(1, 1\), .*; pass output=0, for"):
        net.encoder(torch.randn(2, 3, 10))
    net = attach_linear_bottleneck(Net(nn.LSTM(10, 6, batch_first=True), nn.Linear(6, 10)), dim=6, output=0)
    assert net.encoder(torch.randn(2, 3, 10))[0].shape == (2, 3, 6)
    with pytest.raises(ValueError, match=r"expected output='mean' to lead to a tensor, but a tuple has tensors at 0"):
        attach_linear_bottleneck(Net(nn.LSTM(10, 6), nn.Linear(6, 10)), dim=6, output="mean").encoder(torch.ones(2, 10))
    net = attach_linear_bottleneck(Net(Returning(lambda z: "latents"), nn.Linear(6, 10)), dim=6)
    with pytest.raises(TypeError, match="output of Returning: expected a tensor, or something with a tensor in it"):
        net.encoder(torch.ones(2, 10))


def test_an_axis_that_nothing_decides_is_refused_with_both_named():
    net = Net(nn.Flatten(2), nn.Linear(6, 10))
    attach_linear_bottleneck(net, dim=6, depth=2)
    with pytest.raises(ValueError, match=r"axis 1 or axis 2: both are 6 wide, .* pass feature_axis=1 or"):
        net.encoder(torch.randn(2, 6, 2, 3))
    assert net.encoder(torch.randn(2, 6, 2, 4)).shape == (2, 6, 8)
    net = attach_linear_bottleneck(Net(nn.Flatten(2), nn.Linear(6, 10)), dim=6, depth=2, feature_axis=1, gain=1.0)
    x = torch.randn(2, 6, 2, 3)
    torch.testing.assert_close(net.encoder(x), applied(net.encoder.linear_bottleneck.weight, x.flatten(2), 1))


def test_a_convolution_whose_output_is_turned_round_is_no_guide():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(3, 4, 1)

        def forward(self, x):
            return self.conv(x).transpose(1, 2)

    net = attach_linear_bottleneck(Net(Turned(), nn.Linear(4, 3)), dim=4, depth=2, gain=0.5)
    for length in (3, 5):
        x = torch.randn(2, 3, length)
        tokens = net.encoder.conv(x).transpose(1, 2)
        torch.testing.assert_close(net.encoder(x), applied(net.encoder.linear_bottleneck.weight, tokens, -1))
    with pytest.raises(ValueError, match="axis 1 or axis 2: both are 4 wide"):
        net.encoder(torch.randn(2, 3, 4))


class NormOfImages(nn.LayerNorm):
    """As in ConvNeXt: derived from a norm of tokens, but on axis 1."""

    def forward(self, input):
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize(
    "last", [lambda: NormOfImages(6), lambda: nn.Sequential(nn.Conv2d(6, 12, 1), nn.GLU(1))], ids=["norm", "GLU"]
)
def test_layers_that_say_nothing_certain_do_not_decide(last):
    net = Net(nn.Sequential(nn.Conv2d(3, 6, 1), last()), nn.Conv2d(6, 3, 1))
    x = torch.randn(2, 3, 5, 4)
    latents = net.encoder(x)
    attach_linear_bottleneck(net, dim=6, depth=2, gain=0.5)
    torch.testing.assert_close(net.encoder(x), applied(net.encoder.linear_bottleneck.weight, latents, 1))
    with pytest.raises(ValueError, match="axis 1 or axis 3: both are 6 wide"):
        net.encoder(torch.randn(2, 3, 5, 6))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_of_all_axes_leaves_the_features_where_they_are(norm):
    """What is beside it says where that is: a convolution, on axis 1, though the last one is as wide."""
    net = Net(nn.Sequential(nn.Conv2d(3, 6, 1), norm([6, 6, 6])), nn.Sequential(norm([6, 6, 6]), nn.Conv2d(6, 3, 1)))
    x = torch.randn(2, 3, 6, 6)
    latents, decoder = net.encoder(x), copy.deepcopy(net.decoder)
    attach_linear_bottleneck(net, dim=6, depth=2)
    torch.testing.assert_close(net(x), decoder(applied(net.encoder.linear_bottleneck.weight, latents, 1)))
    attach_linear_bottleneck(net, before="decoder", dim=6, depth=2)
    with pytest.raises(ValueError, match="axis 1 or axis 3: both are 6 wide"):
        net(x)


@pytest.mark.parametrize(
    ("encoder", "shape", "told"),
    [
        (lambda: nn.Conv2d(3, 8, 1), (2, 3, 6, 6), r"expected 6 features on axis 1, got shape \(2, 8, 6, 6\)"),
        (lambda: nn.Linear(3, 8), (2, 6, 3), r"expected 6 features on axis 2, got shape \(2, 6, 8\)"),
    ],
    ids=["channels", "tokens"],
)
def test_a_wrong_width_is_not_taken_for_another_axis(encoder, shape, told):
    net = attach_linear_bottleneck(Net(encoder(), nn.Identity()), dim=6, depth=2)
    with pytest.raises(ValueError, match=told):
        net(torch.randn(shape))


@pytest.mark.parametrize("place", ["encoder.layers.0", "encoder.layers.1", "encoder.layers.1.linear1"])
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_transformer_evaluates_padded_sequences_as_it_trains_on_them(place, depth):
    """Evaluating, torch nests them: what is padding has no place in them."""
    layer = nn.TransformerEncoderLayer(6, 2, 6, dropout=0.0, batch_first=True)
    net = Net(nn.TransformerEncoder(layer, 2), nn.Identity())
    attach_linear_bottleneck(net, after=place, dim=6, depth=depth, gain=0.5)
    x, padding = torch.randn(3, 5, 6), torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    trained = net.encoder(x, src_key_padding_mask=padding)
    net.eval()
    with torch.no_grad():
        evaluated = net.encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(evaluated[~padding], trained[~padding])


@dataclass
class Finished:
    """Changed after it was made, and by itself when it is made."""

    latents: torch.Tensor
    made: InitVar[int] = 1
    loss: float = field(init=False, default=0.0)
    count: int = 0

    def __post_init__(self, made):
        self.count += made


@dataclass(frozen=True)
class Frozen:
    latents: torch.Tensor
    loss: float = 0.0
    count: int = 1


@pytest.mark.parametrize("kind", [Finished, Frozen])
def test_a_dataclass_is_not_made_anew(kind):
    class Makes(nn.Linear):
        def forward(self, x):
            out = kind(super().forward(x))
            object.__setattr__(out, "loss", 3.0)
            return out

    net = attach_linear_bottleneck(Net(Makes(10, 6), nn.Identity()), dim=6, depth=2, output="latents")
    x = torch.randn(7, 10)
    out = net(x)
    expected = nn.functional.linear(x, net.encoder.weight, net.encoder.bias) @ net.encoder.linear_bottleneck.weight.T
    torch.testing.assert_close(out.latents, expected)
    assert (out.loss, out.count) == (3.0, 1)


def test_a_map_without_a_batch_is_refused():
    net = attach_linear_bottleneck(Net(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1)), dim=6, depth=2)
    with pytest.raises(ValueError, match=r"expected a batch of 4 axes from the layer beside, got shape \(6, 5, 6\)"):
        net.encoder(torch.randn(3, 5, 6))


def test_it_attaches_to_a_childs_child():
    net = Net(nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 6)), nn.Linear(6, 10))
    attach_linear_bottleneck(net, "encoder.0", dim=8, depth=2)
    x, inner = torch.randn(3, 10), net.encoder[0].linear_bottleneck
    output = net(x)
    first = nn.functional.linear(x, net.encoder[0].weight, net.encoder[0].bias)
    torch.testing.assert_close(output, net.decoder(net.encoder[1](first @ inner.weight.T)))
    output.sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in inner.layers)


class Looping(nn.Sequential):
    def forward(self, x):
        for layer in self:
            x = layer(x).tanh()
        return x


@pytest.mark.parametrize(
    "host",
    [lambda: Looping(nn.Linear(10, 6)), lambda: type("Stages", (nn.ModuleDict,), {"forward": Looping.forward})()],
    ids=["Sequential", "ModuleDict"],
)
@pytest.mark.parametrize("place", [{"after": "encoder"}, {"before": "encoder"}])
def test_a_module_that_runs_its_entries_by_itself_is_refused(host, place):
    net = Net(host(), nn.Linear(6, 10))
    with pytest.raises(ValueError, match="expected a module that does not run its entries by itself, got 'encoder', a"):
        attach_linear_bottleneck(net, dim=6, **place)
    if place == {"after": "encoder"} and len(net.encoder):
        attach_linear_bottleneck(net, "encoder.0", dim=6, depth=2, gain=0.5)
        x = torch.randn(3, 10)
        layer = net.encoder[0]
        latents = (nn.functional.linear(x, layer.weight, layer.bias) @ layer.linear_bottleneck.weight.T).tanh()
        torch.testing.assert_close(net.encoder(x), latents)


def test_a_first_step_that_is_in_several_places_is_refused():
    act = nn.Tanh()
    net = Net(nn.Linear(10, 6), nn.Sequential(act, nn.Linear(6, 6), act, nn.Linear(6, 10)))
    with pytest.raises(ValueError, match="before: expected the first step of 'decoder' to be in one place, got a Tanh"):
        attach_linear_bottleneck(net, before="decoder", dim=6)


@pytest.mark.parametrize(
    ("place", "wrap"),
    [
        ({"after": "encoder"}, lambda host: nn.Sequential(host, nn.Identity())),
        ({"before": "encoder"}, lambda host: nn.Sequential(nn.Identity(), host)),
    ],
    ids=["after", "before"],
)
def test_modules_that_lose_their_hooks_in_a_copy_or_conversion_are_refused_with_a_way_out(place, wrap):
    dim = 6 if "after" in place else 10
    traced = Net(torch.fx.symbolic_trace(Encoder()), nn.Linear(6, 10))
    with pytest.raises(ValueError, match=r"got 'encoder', .* a traced GraphModule, and copies would lose it"):
        attach_linear_bottleneck(traced, dim=dim, **place)
    traced.encoder = wrap(traced.encoder)
    x = torch.randn(3, 10)
    attach_linear_bottleneck(traced, dim=dim, depth=2, gain=0.3, **place)
    torch.testing.assert_close(copy.deepcopy(traced)(x), traced(x))

    normed = Net(nn.BatchNorm1d(10), nn.Linear(10, 6)).eval()
    with pytest.raises(ValueError, match=r"got 'encoder', .* a batch norm, and convert_sync_batchnorm would lose"):
        attach_linear_bottleneck(normed, dim=10, **place)
    normed.encoder = wrap(normed.encoder)
    attach_linear_bottleneck(normed, dim=10, depth=2, gain=0.3, **place)
    expected = normed(x)
    torch.testing.assert_close(nn.SyncBatchNorm.convert_sync_batchnorm(normed)(x), expected)


def test_in_front_of_a_batch_norm_it_is_one_more_step_which_conversion_keeps():
    norms = nn.Sequential(nn.Sequential(nn.BatchNorm1d(6), nn.ReLU()), nn.Linear(6, 10))
    net = Net(nn.Linear(10, 6), norms).eval()
    plain, keys, x = copy.deepcopy(net), list(net.state_dict()), torch.randn(7, 10)
    attach_linear_bottleneck(net, before="decoder", dim=6, depth=2, gain=0.3)
    own = [f"decoder.0.linear_bottleneck.layers.{k}.weight" for k in range(2)]
    assert [key for key in net.state_dict() if key not in own] == keys
    assert set(own) < set(net.state_dict())
    expected = plain.decoder(net.decoder[0].linear_bottleneck(plain.encoder(x)))
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))(x), expected)
    merged = merge_linear_bottleneck(net)
    assert list(merged.state_dict()) == keys
    torch.testing.assert_close(merged(x), expected)


def test_a_layer_inside_a_traced_module_keeps_its_bottleneck_in_copies():
    net = Net(torch.fx.symbolic_trace(Encoder()), nn.Linear(6, 10))
    attach_linear_bottleneck(net, "encoder.out", dim=6, depth=2, gain=0.3)
    x = torch.randn(3, 10)
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), net(x))


def test_an_encoder_further_inside_is_not_taken_for_the_one_that_is_named():
    net = nn.Module()
    net.teacher = dense()
    with pytest.raises(ValueError, match=r"after: .* got 'encoder'; nearest: 'teacher.encoder'"):
        attach_linear_bottleneck(net, dim=6)


def test_a_bottleneck_lost_in_a_conversion_is_missed():
    net = attach_linear_bottleneck(Net(nn.Linear(10, 6), nn.Linear(6, 10)), dim=6, depth=2)
    swapped = nn.Identity()  # as conversions do: a new module with the old one's hooks
    swapped._forward_hooks = net.encoder._forward_hooks
    with pytest.raises(RuntimeError, match=r"Identity: expected the linear bottleneck .* it was lost"):
        swapped(torch.randn(3, 6))


def test_two_bottlenecks_in_one_module():
    net = dense()
    attach_linear_bottleneck(net, "encoder.0", dim=8, depth=2, gain=0.5)
    attach_linear_bottleneck(net, "encoder", dim=6, depth=3, gain=0.5)
    x = torch.randn(3, 10)
    first = nn.functional.linear(x, net.encoder[0].weight, net.encoder[0].bias)
    second = net.encoder[1](first @ net.encoder[0].linear_bottleneck.weight.T)
    torch.testing.assert_close(net(x), net.decoder(second @ net.encoder.linear_bottleneck.weight.T))


def test_a_shared_encoder_called_twice_passes_through_the_one_bottleneck_each_time():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(10, 6)

        def forward(self, x, y):
            return self.encoder(x) - self.encoder(y)

    net = attach_linear_bottleneck(Siamese(), dim=6, depth=2, gain=0.5)
    x, y = torch.randn(2, 3, 10)
    expected = (x - y) @ net.encoder.weight.T @ net.encoder.linear_bottleneck.weight.T
    torch.testing.assert_close(net(x, y), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_passes_through_its_own_bottleneck(duplicate):
    net = attach_linear_bottleneck(dense(), dim=6, depth=2, gain=1.0)
    twin = duplicate(net)
    x = torch.randn(3, 10)
    torch.testing.assert_close(twin(x), net(x))
    with torch.no_grad():
        twin.encoder.linear_bottleneck.layers[0].weight.zero_()
    torch.testing.assert_close(twin(x), twin.decoder.bias.expand(3, 10))
    assert not torch.allclose(net(x), twin(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.linear(x).tanh()


@pytest.mark.parametrize("end", ["after", "before"])
def test_of_equal_blocks_that_are_compiled_one_by_one_the_one_that_has_it_passes_through_it(end):
    torch.compiler.reset()
    net, x = nn.Sequential(*(Block() for _ in range(4))), torch.randn(5, 6)
    attach_linear_bottleneck(net, **{end: "2.linear"}, dim=6, depth=2, gain=0.1)
    with torch.no_grad():
        expected = net(x)
        for block in net:
            block.compile(backend="eager")
        torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("order", ["attach, then compile", "compile, then attach", "compile in place, then attach"])
def test_compiled_children(order):
    net = dense()
    if order == "compile, then attach":
        net.encoder = torch.compile(net.encoder, backend="eager")
    if order == "compile in place, then attach":
        net.encoder.compile(backend="eager")
    attach_linear_bottleneck(net, dim=6, depth=2, gain=1.0)
    if order == "attach, then compile":
        net.encoder = torch.compile(net.encoder, backend="eager")
    x = torch.randn(3, 10)
    encoder = getattr(net.encoder, "_orig_mod", net.encoder)
    expected = encoder[1](encoder[0](x)) @ net.encoder.linear_bottleneck.weight.T
    torch.testing.assert_close(net.encoder(x), expected)


@pytest.mark.parametrize("what", ["the child", "the whole"])
def test_code_compiled_for_an_equal_module_without_the_bottleneck_is_not_used(what):
    def compiled(net):
        if what == "the whole":
            return torch.compile(net, backend="eager")
        net.encoder = torch.compile(net.encoder, backend="eager")
        return net

    x = torch.randn(3, 10)
    compiled(dense())(x)
    net = attach_linear_bottleneck(dense(), dim=6, depth=2)
    expected = net(x)
    torch.testing.assert_close(compiled(net)(x), expected)


@pytest.mark.filterwarnings(DYNAMO)
@pytest.mark.parametrize("backend", ["eager", None])
def test_the_bottleneck_may_be_compiled_or_replaced_and_is_what_its_name_says(backend):
    net = attach_linear_bottleneck(dense(), dim=6, depth=2)
    x = torch.randn(3, 10)
    if backend:
        calls = []
        expected = net(x)
        net.encoder.linear_bottleneck = torch.compile(net.encoder.linear_bottleneck, backend=backend)
        net.encoder.linear_bottleneck.register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(net(x), expected)
        assert calls == [1]
    else:
        net.encoder.linear_bottleneck = nn.Identity()
        torch.testing.assert_close(net.encoder(x), net.encoder[1](net.encoder[0](x)))
        del net.encoder.linear_bottleneck
        torch.testing.assert_close(net.encoder(x), net.encoder[1](net.encoder[0](x)))


@pytest.mark.parametrize("make", [dense, lambda: Net(Encoder(), nn.Linear(6, 10))], ids=["Sequential", "module"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_the_encoder_alone_takes_its_bottleneck_along(make, duplicate):
    net = attach_linear_bottleneck(make(), dim=6, depth=2, gain=1.0)
    net.decoder.heavy = lambda: "cannot be pickled, and is not looked at"
    teacher = duplicate(net.encoder).requires_grad_(False)
    x = torch.randn(3, 10)
    optimizer = torch.optim.SGD(net.encoder.parameters(), lr=0.1)
    net.encoder(x).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(teacher(x), net.encoder(x))
    assert not teacher(x).requires_grad
    for mine, theirs in zip(teacher.parameters(), net.encoder.parameters(), strict=True):  # decay 0
        mine.copy_(theirs)
    torch.testing.assert_close(teacher(x), net.encoder(x))
    assert duplicate(teacher).double()(x.double()).dtype == torch.float64
    # A classifier on the encoder, saved and loaded by somebody who attached again.
    classifier = nn.Sequential(net.encoder, nn.Linear(6, 2))
    fresh = nn.Sequential(attach_linear_bottleneck(make(), dim=6, depth=2).encoder, nn.Linear(6, 2))
    fresh.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(fresh(x), classifier(x))


def test_optimizers_of_the_children_hold_the_bottleneck():
    net = attach_linear_bottleneck(dense(), dim=6, depth=2, gain=0.5)
    generator = torch.optim.SGD([*net.encoder.parameters(), *net.decoder.parameters()], lr=0.1)
    before = net.encoder.linear_bottleneck.weight.clone()
    net(torch.randn(3, 10)).square().sum().backward()
    generator.step()
    assert not torch.equal(net.encoder.linear_bottleneck.weight, before)


def _evaluate_unevenly(rank, world_size):
    torch.manual_seed(0)
    net = nn.parallel.DistributedDataParallel(attach_linear_bottleneck(dense(), dim=6, depth=2, gain=0.5))
    net(torch.ones(3, 10)).sum().backward()
    net.eval()
    with torch.no_grad():
        outputs = [net(torch.ones(3, 10)) for _ in range(2 * (1 - rank))]
    counts = torch.tensor([len(outputs)])
    torch.distributed.all_reduce(counts)
    return counts.item(), net.module.encoder.linear_bottleneck.layers[0].weight.grad


def test_a_process_without_batches_does_not_make_the_others_wait(tmp_path):
    (count, gradient), (same, other) = in_processes(2, _evaluate_unevenly, tmp_path)
    assert count == same == 2
    assert torch.equal(gradient, other)


def test_on_the_meta_device_then_materialized_layer_by_layer():
    with torch.device("meta"):
        net = attach_linear_bottleneck(dense(), dim=6, depth=4, gain=0.5)
    assert net(torch.empty(3, 10, device="meta")).shape == (3, 10)
    for module in net.to_empty(device="cpu").modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.testing.assert_close(torch.linalg.svdvals(net.encoder.linear_bottleneck.weight), torch.full((6,), 0.5))


def test_a_child_with_two_names_is_found_by_either():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = dense()
            self.encoder = self.net.encoder

    assert attach_linear_bottleneck(Aliased(), "encoder", dim=6).net.encoder.linear_bottleneck.dim == 6


def test_it_is_made_where_and_as_the_child_is():
    net = attach_linear_bottleneck(dense().double().eval(), dim=6, depth=2)
    assert net.encoder.linear_bottleneck.weight.dtype == torch.float64
    assert not net.encoder.linear_bottleneck.training
    assert net(torch.randn(3, 10, dtype=torch.float64)).dtype == torch.float64


def test_it_is_made_as_the_parameter_next_to_the_latents_is():
    class Cast(nn.Module):
        def forward(self, x):
            return x.double()

    net = Net(nn.Sequential(nn.Linear(10, 8), Cast(), nn.Linear(8, 6).double()), nn.Linear(6, 10).double())
    attach_linear_bottleneck(net, dim=6, depth=2)
    assert net(torch.randn(3, 10)).dtype == torch.float64
    net = Net(nn.Identity(), nn.Sequential(nn.Linear(10, 8), Cast(), nn.Linear(8, 6).double()))
    attach_linear_bottleneck(net, before="decoder", dim=10, depth=2)
    assert net(torch.randn(3, 10)).dtype == torch.float64


def test_collapse_keeps_outputs_and_makes_one_layer():
    for make, size, _, name in HOSTS.values():
        net = attach_linear_bottleneck(make().eval(), dim=6, depth=5, gain=0.8)
        x = torch.randn(size)
        before = net(x)
        assert collapse_linear_bottleneck(net) is net
        torch.testing.assert_close(net(x), before)
        assert [tuple(p.shape) for p in net.get_submodule(name).parameters()] == [(6, 6)]
        assert net.get_submodule(name).depth == 1


def test_collapse_keeps_frozen_layers_frozen_and_the_identity():
    net = attach_linear_bottleneck(dense(), dim=6, depth=3)
    net.encoder.linear_bottleneck.requires_grad_(False)
    assert not collapse_linear_bottleneck(net).encoder.linear_bottleneck.layers[0].weight.requires_grad
    assert (
        collapse_linear_bottleneck(attach_linear_bottleneck(dense(), dim=6, depth=0)).encoder.linear_bottleneck.depth
        == 0
    )
    with pytest.raises(ValueError, match="module: expected a LinearBottleneck somewhere in Net, found none"):
        collapse_linear_bottleneck(dense())


def test_bad_arguments_are_refused():
    net = dense()
    with pytest.raises(
        ValueError, match="after: expected the name of a submodule of Net, got 'encodr'; nearest: 'encoder'"
    ):
        attach_linear_bottleneck(net, "encodr", dim=6)
    with pytest.raises(ValueError, match="depth: expected 0 or more, got -1"):
        attach_linear_bottleneck(net, dim=6, depth=-1)
    with pytest.raises(ValueError, match="before: expected either after= or before=, got after='encoder' and"):
        attach_linear_bottleneck(net, "encoder", "decoder", dim=6)
    with pytest.raises(TypeError, match=r"output: expected an index, a key, an attribute or a path .* got 1.5"):
        attach_linear_bottleneck(net, dim=6, output=1.5)
    with pytest.raises(TypeError, match=r"module: expected an nn.Module, got dict"):
        attach_linear_bottleneck({}, dim=6)
    assert list(net.state_dict()) == list(dense().state_dict())
    net.blocks = nn.ModuleList([nn.Linear(3, 3)])
    with pytest.raises(ValueError, match="after: expected a submodule that is called, got 'blocks', a ModuleList"):
        attach_linear_bottleneck(net, "blocks", dim=3)
    net.nothing = nn.Sequential()
    with pytest.raises(ValueError, match="before: expected a submodule that is called, got 'nothing', a Sequential"):
        attach_linear_bottleneck(net, before="nothing", dim=3)
    attach_linear_bottleneck(net, dim=5)
    with pytest.raises(ValueError, match=r"input: expected 5 features on axis 1, got shape \(3, 6\)"):
        net(torch.randn(3, 10))
    with pytest.raises(ValueError, match="expected no attribute 'linear_bottleneck' yet, but Sequential has one"):
        attach_linear_bottleneck(net, dim=6)
