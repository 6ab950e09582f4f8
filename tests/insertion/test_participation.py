"""Whoever trains a bottleneck that is never called learns of it."""

import gc
import weakref

import pytest
import tiny
import torch
from torch import nn

from lightning_rank import DepthScaledLR, LinearBottleneck, attach_linear_bottleneck


class Bypassing(tiny.TinyAutoencoder):
    """Its encoder is run, but not called."""

    def forward(self, x):
        return self.decoder(nn.functional.linear(x, self.encoder.weight, self.encoder.bias))


def attached(cls=Bypassing, **options):
    return attach_linear_bottleneck(cls(), dim=tiny.DIM, depth=2, **options)


@pytest.mark.parametrize("callbacks", [[], [DepthScaledLR()]], ids=["alone", "DepthScaledLR"])
def test_it_is_said_after_the_first_step(callbacks):
    trainer = tiny.trainer(callbacks=callbacks, max_steps=1)
    with pytest.warns(UserWarning, match=r"'encoder.linear_bottleneck' took no part .* before= .*LinearBottleneckMi"):
        trainer.fit(attached(), tiny.loader())
    # Any warning is an error here.
    tiny.trainer(callbacks=callbacks, max_steps=1).fit(attached(tiny.TinyAutoencoder), tiny.loader())


def test_of_a_bottleneck_that_was_not_attached_the_callback_says_it():
    class Own(tiny.TinyAutoencoder):
        def __init__(self):
            super().__init__()
            self.stack = LinearBottleneck(tiny.DIM, 2)

    with pytest.warns(UserWarning, match="'stack' took no part"):
        tiny.trainer(callbacks=[DepthScaledLR()], max_steps=1).fit(Own(), tiny.loader())


def test_of_two_optimizers_only_the_one_that_holds_it_tells():
    model = attached(tiny.TinyAutoencoder)
    first = torch.optim.SGD(model.decoder.parameters(), 0.1)
    second = torch.optim.SGD(model.encoder.parameters(), 0.1)
    x = tiny.rows()
    model.decoder(torch.randn(3, tiny.DIM)).sum().backward()
    first.step()
    second.zero_grad()
    model(x).sum().backward()
    second.step()  # a warning would be an error


def test_frozen_ones_are_not_awaited_and_it_is_said_once():
    model = attached()
    model.encoder.linear_bottleneck.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(tiny.rows()).sum().backward()
    optimizer.step()
    model.encoder.linear_bottleneck.requires_grad_(True)
    with pytest.warns(UserWarning, match="took no part"):
        optimizer.step()
    optimizer.step()


def test_it_keeps_no_module_alive():
    model = attached()
    alive = weakref.ref(model.encoder.linear_bottleneck)
    del model
    gc.collect()
    assert alive() is None
