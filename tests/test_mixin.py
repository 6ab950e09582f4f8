"""Modules written with a linear bottleneck."""

import pytest
import tiny
import torch
from torch import nn

from lightning_rank import LinearBottleneckMixin


def test_it_round_trips_through_load_from_checkpoint(tmp_path):
    model = tiny.TinyMixedIn(depth=3, gain=0.7)
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(model, tiny.loader())
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=False)
    loaded = tiny.TinyMixedIn.load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu")
    assert loaded.encoder.linear_bottleneck.depth == 3
    x = tiny.rows()
    torch.testing.assert_close(loaded(x), model(x))


def test_a_checkpoint_saved_without_the_bottleneck_loads_if_that_is_allowed(tmp_path):
    class Allowing(LinearBottleneckMixin, tiny.TinyAutoencoder):
        def __init__(self):
            super().__init__()
            self.add_linear_bottleneck(dim=tiny.DIM, after="encoder", allow_missing=True)

    trainer = tiny.trainer(max_epochs=1)
    plain = tiny.TinyAutoencoder()
    trainer.fit(plain, tiny.loader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    allowed = Allowing.load_from_checkpoint(tmp_path / "plain.ckpt", map_location="cpu")
    with pytest.warns(UserWarning, match="in the model state dict but not in the checkpoint"):  # Lightning's own
        loose = tiny.TinyMixedIn.load_from_checkpoint(tmp_path / "plain.ckpt", map_location="cpu", strict=False)
    for loaded in (allowed, loose):
        torch.testing.assert_close(loaded.encoder.bias, plain.encoder.bias)
        values = torch.linalg.svdvals(loaded.encoder.linear_bottleneck.weight)
        assert values[0] < 1.01 * values[-1]
    with pytest.raises(RuntimeError, match=r"strict=False, or attach it with allow_missing=True"):
        tiny.TinyMixedIn.load_from_checkpoint(tmp_path / "plain.ckpt", map_location="cpu")


def test_without_a_place_the_call_is_left_to_the_author():
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


def test_in_front_of_a_module_and_of_several_outputs():
    class Split(LinearBottleneckMixin, nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.LSTM(10, 6), nn.Linear(6, 10)
            self.add_linear_bottleneck(dim=6, depth=2, gain=0.5, after="encoder", output=0)
            self.add_linear_bottleneck(dim=6, depth=3, gain=0.5, before="decoder")

        def forward(self, x):
            return self.decoder(self.encoder(x)[0])

    net = Split()
    assert (net.encoder.linear_bottleneck.depth, net.decoder.linear_bottleneck.depth) == (2, 3)
    assert net(torch.randn(2, 3, 10)).shape == (2, 3, 10)


def test_bad_uses_are_refused():
    with pytest.raises(TypeError, match=r"expected LinearBottleneckMixin to be mixed into an nn.Module"):
        LinearBottleneckMixin().add_linear_bottleneck(dim=4)

    class Nowhere(LinearBottleneckMixin, nn.Module):
        def __init__(self):
            super().__init__()
            self.add_linear_bottleneck(dim=4, output=0)

    with pytest.raises(ValueError, match="output: expected after= or before= beside it, got neither"):
        Nowhere()
