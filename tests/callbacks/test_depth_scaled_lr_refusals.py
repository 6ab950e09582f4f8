"""What DepthScaledLR refuses is as it was before, and what holds no bottleneck is left alone."""

from collections import defaultdict

import pytest
import tiny
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import SGD, Optimizer

from lightning_rank import DepthScaledLR, attach_linear_bottleneck


def stepped(self, closure=None):
    loss = closure() if closure else None
    for inner in self.optimizers.values() if isinstance(self.optimizers, dict) else self.optimizers:
        inner.step()
    return loss


class Combined(Optimizer):
    """One optimizer out of several, over their groups."""

    step = stepped

    def __init__(self, *optimizers):
        self.optimizers = list(optimizers)
        super().__init__([group for inner in optimizers for group in inner.param_groups], {})


class Named:
    """Likewise, by name, and without torch's class."""

    step = stepped

    def __init__(self, *optimizers):
        self.optimizers = {f"optimizer {index}": inner for index, inner in enumerate(optimizers)}
        self.param_groups = [group for inner in optimizers for group in inner.param_groups]
        self.defaults, self.state = {}, defaultdict(dict)

    def zero_grad(self, set_to_none=True):
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            parameter.grad = None

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


class PutTogether(Named):
    """Likewise, with a list of groups that is made each time."""

    def __init__(self, *optimizers):
        self.optimizers, self.defaults, self.state = list(optimizers), {}, defaultdict(dict)

    param_groups = property(lambda self: [group for inner in self.optimizers for group in inner.param_groups])


class OneForAll(SGD):
    """Refuses learning rates that differ."""

    def step(self, closure=None):
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise RuntimeError("setting different lr values is not supported")
        return super().step(closure)


def halves(cls, model):
    return cls(SGD(model.encoder.parameters(), lr=1e-2), SGD(model.decoder.parameters(), lr=1e-2))


REFUSED = {
    "Combined does not share its param groups with the SGD inside it": lambda m: halves(Combined, m),
    "Named does not share its param groups with the SGD inside it": lambda m: halves(Named, m),
    "PutTogether does not keep the param groups that it is given": lambda m: halves(PutTogether, m),
    "LBFGS takes one param group only": lambda m: torch.optim.LBFGS(m.parameters(), lr=1e-2),
    "OneForAll takes one learning rate for all param groups": lambda m: OneForAll(m.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_optimizer_trains_without_the_callback_as_if_it_had_never_been_asked(reason):
    def trained(refused_before):
        model = tiny.tiny()
        optimizer = REFUSED[reason](model)
        inner = getattr(optimizer, "optimizers", [])
        members = [optimizer, *(inner.values() if isinstance(inner, dict) else inner)]
        before = [dict(group) for member in members for group in member.param_groups]
        model.configure_optimizers = lambda: optimizer
        if refused_before:
            with pytest.raises(MisconfigurationException, match=f"{reason}.*depth_scaled_param_groups"):
                tiny.trainer(callbacks=[DepthScaledLR()]).fit(model, tiny.loader())
            after = [group for member in members for group in member.param_groups]
            for group, was in zip(after, before, strict=True):
                assert group.keys() == was.keys()
                assert [*map(id, group["params"])] == [*map(id, was["params"])]
        tiny.trainer().fit(model, tiny.loader())
        return model.state_dict()

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=0)


class OnePerHalf(tiny.TinyAutoencoder):
    """Two optimizers in turns; the one of the decoder knows the one of the encoder."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        first, second = (SGD(half.parameters(), lr=1e-2) for half in (self.encoder, self.decoder))
        second.after = first
        return [first, second]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


def test_an_optimizer_without_a_bottleneck_is_left_alone_with_all_that_it_knows():
    model = attach_linear_bottleneck(OnePerHalf(), dim=tiny.DIM, depth=4, gain=1.0)
    trainer = tiny.trainer(callbacks=[DepthScaledLR()])
    trainer.fit(model, tiny.loader())
    first, second = trainer.optimizers
    assert [(len(group["params"]), group["lr"]) for group in first.param_groups] == [(2, 1e-2), (4, 2.5e-3)]
    assert [[*map(id, group["params"])] for group in second.param_groups] == [[*map(id, model.decoder.parameters())]]
    assert second.param_groups[0].keys() == SGD(model.decoder.parameters()).param_groups[0].keys()


def test_with_a_bottleneck_of_depth_zero_every_optimizer_is_left_alone():
    class Tenth(SGD):
        """Its groups are shown as one; inside, the decoder trains at a tenth."""

        def __init__(self, model):
            super().__init__(model.parameters(), lr=1e-2)
            self.inner = SGD([{"params": model.encoder.parameters()}, {"params": model.decoder.parameters()}], lr=1e-3)

        def step(self, closure=None):
            return self.inner.step(closure)

    model = tiny.tiny(depth=0)
    model.configure_optimizers = lambda: Tenth(model)
    trainer = tiny.trainer(callbacks=[DepthScaledLR()])
    trainer.fit(model, tiny.loader())
    (optimizer,) = trainer.optimizers
    assert [len(group["params"]) for group in optimizer.param_groups] == [4]
    assert [len(group["params"]) for group in optimizer.inner.param_groups] == [2, 2]


class SlowWeights:
    """Lookahead with its slow weights in the order of the param groups, which splitting changes."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.defaults, self.state = optimizer.defaults, optimizer.state
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        for group, slow in zip(self.param_groups, self.slow, strict=True):
            for parameter, kept in zip(group["params"], slow, strict=True):
                kept.lerp_(parameter.detach(), 0.5)
                parameter.data.copy_(kept)
        return loss

    zero_grad = property(lambda self: self.optimizer.zero_grad)
    state_dict = property(lambda self: self.optimizer.state_dict)
    load_state_dict = property(lambda self: self.optimizer.load_state_dict)


def test_what_is_kept_by_position_is_refused_and_left_as_it_was():
    class Slow(tiny.TinyAutoencoder):
        def configure_optimizers(self):
            return SlowWeights(SGD(self.parameters(), lr=1e-2))

    module = attach_linear_bottleneck(Slow(), dim=tiny.DIM, depth=2)
    with pytest.raises(MisconfigurationException, match="SlowWeights keeps 'slow', a tensor for each parameter"):
        tiny.trainer(callbacks=[DepthScaledLR()], max_steps=1).fit(module, tiny.loader())
    tiny.trainer(max_steps=2).fit(module, tiny.loader())


def test_validating_elsewhere_within_a_fit_leaves_the_ratio_to_the_fit():
    callback = DepthScaledLR()

    class Validating(tiny.TinyAutoencoder):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                other = attach_linear_bottleneck(tiny.TinyAutoencoder(), dim=tiny.DIM, depth=2)
                tiny.trainer(callbacks=[callback]).validate(other, tiny.loader(), verbose=False)

        def on_train_batch_end(self, *args):
            for group in self.optimizers().param_groups:
                group["lr"] = 1e-2

        def on_before_zero_grad(self, optimizer):
            self.rates = [group["lr"] for group in optimizer.param_groups]

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=1e-2)

    module = attach_linear_bottleneck(Validating(), dim=tiny.DIM, depth=2)
    tiny.trainer(callbacks=[callback], max_epochs=2).fit(module, tiny.loader())
    assert module.rates == [1e-2, 5e-3]
