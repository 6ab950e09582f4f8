"""A bottleneck put into an autoencoder that has none, without losing anything it had."""

import copy
import pickle

import pytest
import tiny
import torch
from torch import nn

from lightning_rank import LinearBottleneck, LinearBottleneckMixin, attach_linear_bottleneck, collapse_linear_bottleneck


class Net(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x):
        return self.decoder(self.encoder(x))


def dense() -> Net:
    return Net(nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 6)), nn.Linear(6, 10))


SHAPES = {
    "(B, dim)": (dense, (7, 10)),
    "(B, T, dim)": (dense, (2, 7, 10)),
    "(B, dim, H, W)": (lambda: Net(nn.Conv2d(3, 6, 2, 2), nn.ConvTranspose2d(6, 3, 2, 2)), (2, 3, 8, 6)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_childs_output_passes_through_the_bottleneck(shape):
    make, size = SHAPES[shape]
    net = make()
    x = torch.randn(size)
    latents = net.encoder(x)
    attach_linear_bottleneck(net, dim=6, depth=3, gain=0.5)
    assert isinstance(net.linear_bottleneck, LinearBottleneck)
    weight = net.linear_bottleneck.weight
    expected = torch.einsum("oi,bihw->bohw", weight, latents) if x.ndim == 4 else latents @ weight.T
    torch.testing.assert_close(net.encoder(x), expected)
    torch.testing.assert_close(net(x), net.decoder(expected))


def test_it_attaches_to_a_childs_child():
    net = Net(nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 6)), nn.Linear(6, 10))
    attach_linear_bottleneck(net, "encoder.0", dim=8, depth=2)
    x = torch.randn(3, 10)
    net(x).sum().backward()
    assert all(layer.weight.grad is not None for layer in net.linear_bottleneck.layers)


def test_existing_parameters_keep_their_names_and_values():
    before = dense()
    names = list(before.state_dict())
    after = attach_linear_bottleneck(copy.deepcopy(before), dim=6, depth=2)
    assert list(after.state_dict())[: len(names)] == names
    assert list(after.state_dict())[len(names) :] == [f"linear_bottleneck.layers.{k}.weight" for k in (0, 1)]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_weights_saved_without_the_bottleneck_load_into_a_module_that_has_it(strict, assign):
    plain = dense()
    net = attach_linear_bottleneck(dense(), dim=6, depth=2)
    own = net.linear_bottleneck.weight.clone()
    with pytest.warns(UserWarning, match="state_dict: no weights for 'linear_bottleneck'"):
        net.load_state_dict(plain.state_dict(), strict=strict, assign=assign)
    assert torch.equal(net.encoder[0].weight, plain.encoder[0].weight)
    assert torch.equal(net.linear_bottleneck.weight, own)
    assert all(isinstance(layer.weight, nn.Parameter) for layer in net.linear_bottleneck.layers)


def test_weights_of_another_depth_do_not_load_silently():
    deep, shallow = (attach_linear_bottleneck(dense(), dim=6, depth=depth) for depth in (4, 2))
    with pytest.raises(RuntimeError, match=r"linear_bottleneck.layers.2.weight"):
        shallow.load_state_dict(deep.state_dict())
    with pytest.raises(RuntimeError, match=r"linear_bottleneck.layers.2.weight"):
        deep.load_state_dict(shallow.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_passes_through_its_own_bottleneck(duplicate):
    net = attach_linear_bottleneck(dense(), dim=6, depth=2, gain=1.0)
    twin = duplicate(net)
    x = torch.randn(3, 10)
    torch.testing.assert_close(twin(x), net(x))
    with torch.no_grad():
        twin.linear_bottleneck.layers[0].weight.zero_()
    torch.testing.assert_close(twin(x), twin.decoder.bias.expand(3, 10))
    assert not torch.allclose(net(x), twin(x))


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
    expected = encoder[1](encoder[0](x)) @ net.linear_bottleneck.weight.T
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


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own
@pytest.mark.parametrize("backend", ["eager", None])
def test_the_bottleneck_may_be_compiled_or_replaced_and_is_what_its_name_says(backend):
    net = attach_linear_bottleneck(dense(), dim=6, depth=2)
    x = torch.randn(3, 10)
    if backend:
        calls = []
        expected = net(x)
        net.linear_bottleneck = torch.compile(net.linear_bottleneck, backend=backend)
        net.linear_bottleneck.register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(net(x), expected)
        assert calls == [1]
    else:
        net.linear_bottleneck = nn.Identity()
        torch.testing.assert_close(net.encoder(x), net.encoder[1](net.encoder[0](x)))
        del net.linear_bottleneck
        torch.testing.assert_close(net.encoder(x), net.encoder[1](net.encoder[0](x)))


def test_a_copy_of_the_child_alone_has_a_bottleneck_of_its_own_and_nothing_else():
    net = attach_linear_bottleneck(dense(), dim=6, depth=2)
    net.decoder.heavy = [1]
    encoder = copy.deepcopy(net.encoder)
    x = torch.randn(3, 10)
    torch.testing.assert_close(encoder(x), net.encoder(x))
    (hook,) = encoder._forward_hooks.values()
    assert list(hook.children) == ["linear_bottleneck"]
    with torch.no_grad():
        hook.children["linear_bottleneck"].layers[0].weight.zero_()
    assert not torch.allclose(encoder(x), net.encoder(x))


def test_a_child_with_two_names_is_found_by_either():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = dense()
            self.encoder = self.net.encoder

    assert attach_linear_bottleneck(Aliased(), "encoder", dim=6).linear_bottleneck.dim == 6


def test_it_is_made_where_and_as_the_child_is():
    net = attach_linear_bottleneck(dense().double().eval(), dim=6, depth=2)
    assert net.linear_bottleneck.weight.dtype == torch.float64
    assert not net.linear_bottleneck.training
    assert net(torch.randn(3, 10, dtype=torch.float64)).dtype == torch.float64


def test_collapse_keeps_outputs_and_makes_one_layer():
    for shape in SHAPES:
        make, size = SHAPES[shape]
        net = attach_linear_bottleneck(make(), dim=6, depth=5, gain=0.8)
        x = torch.randn(size)
        before = net(x)
        assert collapse_linear_bottleneck(net) is net
        torch.testing.assert_close(net(x), before)
        assert [tuple(p.shape) for p in net.linear_bottleneck.parameters()] == [(6, 6)]
        assert net.linear_bottleneck.depth == 1


def test_collapse_keeps_frozen_layers_frozen_and_the_identity():
    net = attach_linear_bottleneck(dense(), dim=6, depth=3)
    net.linear_bottleneck.requires_grad_(False)
    assert not collapse_linear_bottleneck(net).linear_bottleneck.layers[0].weight.requires_grad
    assert collapse_linear_bottleneck(attach_linear_bottleneck(dense(), dim=6, depth=0)).linear_bottleneck.depth == 0
    with pytest.raises(ValueError, match="module: expected a LinearBottleneck somewhere in Net, found none"):
        collapse_linear_bottleneck(dense())


def test_mixin_round_trips_through_load_from_checkpoint(tmp_path):
    model = tiny.TinyMixedIn(depth=3, gain=0.7)
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(model, tiny.loader())
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=False)
    loaded = tiny.TinyMixedIn.load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu")
    assert loaded.linear_bottleneck.depth == 3
    x = tiny.rows()
    torch.testing.assert_close(loaded(x), model(x))


def test_a_checkpoint_saved_without_the_bottleneck_loads_into_the_mixin(tmp_path):
    trainer = tiny.trainer(max_epochs=1)
    plain = tiny.TinyAutoencoder()
    trainer.fit(plain, tiny.loader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(UserWarning, match="saved without the bottleneck"):
        loaded = tiny.TinyMixedIn.load_from_checkpoint(tmp_path / "plain.ckpt", map_location="cpu")
    torch.testing.assert_close(loaded.encoder.bias, plain.encoder.bias)


def test_mixin_without_after_leaves_the_call_to_the_author():
    class Explicit(LinearBottleneckMixin, nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(10, 6)
            self.add_linear_bottleneck(dim=6, depth=2, gain=0.5)

        def forward(self, x):
            return self.linear_bottleneck(self.encoder(x))

    net = Explicit()
    x = torch.randn(3, 10)
    torch.testing.assert_close(net(x), net.encoder(x) @ net.linear_bottleneck.weight.T)


def test_bad_arguments_are_refused():
    net = dense()
    with pytest.raises(
        ValueError, match="after: expected the name of a submodule of Net, got 'encodr'; nearest: 'encoder'"
    ):
        attach_linear_bottleneck(net, "encodr", dim=6)
    with pytest.raises(ValueError, match="depth: expected 0 or more, got -1"):
        attach_linear_bottleneck(net, dim=6, depth=-1)
    with pytest.raises(TypeError, match=r"after: expected the name of a submodule, got NoneType"):
        attach_linear_bottleneck(net, None, dim=6)
    with pytest.raises(TypeError, match=r"module: expected an nn.Module, got dict"):
        attach_linear_bottleneck({}, dim=6)
    assert not hasattr(net, "linear_bottleneck")
    net.blocks = nn.ModuleList([nn.Linear(3, 3)])
    with pytest.raises(ValueError, match="after: expected a child that is called, got 'blocks', a ModuleList"):
        attach_linear_bottleneck(net, "blocks", dim=3)
    attach_linear_bottleneck(net, dim=5)
    with pytest.raises(ValueError, match=r"input: expected 5 features on axis 1, got shape \(3, 6\)"):
        net(torch.randn(3, 10))
    with pytest.raises(ValueError, match="module: expected no attribute 'linear_bottleneck' yet, but Net has one"):
        attach_linear_bottleneck(net, dim=6)
    with pytest.raises(TypeError, match=r"expected LinearBottleneckMixin to be mixed into an nn.Module"):
        LinearBottleneckMixin().add_linear_bottleneck(dim=4)


def test_a_child_that_returns_a_tuple_is_refused_with_the_way_out():
    net = Net(nn.LSTM(10, 6, batch_first=True), nn.Linear(6, 10))
    attach_linear_bottleneck(net, dim=6)
    with pytest.raises(
        TypeError, match=r"after='encoder': expected .* one tensor, got tuple; call self.linear_bottleneck"
    ):
        net(torch.randn(2, 3, 10))
