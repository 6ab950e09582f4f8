"""DepthScaledLR with optimizers around optimizers, and with those that set learning rates of their own."""

from collections import defaultdict

import pytest
import tiny
import torch
from displacement import Displacement
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_rank import DepthScaledLR, attach_linear_bottleneck
from lightning_rank.optim.response import response_to_learning_rate


class SharpnessAware(torch.optim.Optimizer):
    """Two closures a step; the optimizer inside shares the groups, and here the list of them, too."""

    def __init__(self, params, cls, lr, rho=0.05):
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base_optimizer = cls(self.param_groups, lr=lr)
        self.share()

    def share(self):
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        gradients = {p: p.grad.clone() for group in self.param_groups for p in group["params"]}
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(gradients[parameter], alpha=float(group["rho"] / norm))
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(gradients[parameter], alpha=float(group["rho"] / norm))
        self.base_optimizer.step()
        return loss

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups[:] = self.param_groups
        self.share()


class SharingDictsOnly(SharpnessAware):
    """Its groups are those of the optimizer inside, in a list of its own."""

    def share(self):
        self.param_groups = list(self.base_optimizer.param_groups)


class LookingAhead(torch.optim.Optimizer):
    """It leaves torch's constructor out, has a property for groups, and steps the optimizer inside with the closure."""

    def __init__(self, inner):
        self.inner, self.defaults = inner, inner.defaults

    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def state_dict(self):
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict["inner"])


WRAPPERS = {
    "sharing the list": lambda module: SharpnessAware(module.parameters(), torch.optim.SGD, lr=1e-2),
    "sharing the groups": lambda module: SharingDictsOnly(module.parameters(), torch.optim.SGD, lr=1e-2),
    "a property": lambda module: LookingAhead(torch.optim.SGD(module.parameters(), lr=1e-2)),
    "twice": lambda module: LookingAhead(SharpnessAware(module.parameters(), torch.optim.SGD, lr=1e-2)),
}


class Optimized(tiny.TinyAutoencoder):
    """Its rates are set by hand in the closure."""

    make = None

    def configure_optimizers(self):
        return type(self).make(self)

    def on_after_backward(self):
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (self.global_step + 1)


def built(make, cls=Optimized):
    torch.manual_seed(0)
    module = type("Made", (cls,), {"make": staticmethod(make)})()
    return attach_linear_bottleneck(module, dim=tiny.DIM, depth=4, gain=1.0)


def fit(model, *callbacks, **options):
    trainer = tiny.trainer(callbacks=list(callbacks), **options)
    trainer.fit(model, tiny.loader())
    return trainer


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapping_optimizer_is_split_once_and_tied_where_it_updates(wrapper):
    displacement = Displacement()
    trainer = fit(built(WRAPPERS[wrapper]), DepthScaledLR(), displacement)
    rates = [1e-2 * (step + 1) for step in range(8)]
    torch.testing.assert_close(displacement.steps, [(rate, rate / 4) for rate in rates], rtol=1e-3, atol=0)
    (optimizer,) = trainer.optimizers
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4]
    while inner := next((v for v in vars(optimizer).values() if isinstance(v, torch.optim.Optimizer)), None):
        assert [*map(id, inner.param_groups)] == [*map(id, optimizer.param_groups)]
        optimizer = inner


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapping_optimizer_resumes(wrapper, tmp_path):
    trainer = fit(built(WRAPPERS[wrapper]), DepthScaledLR())
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    expected = fit(built(WRAPPERS[wrapper]), DepthScaledLR(), max_epochs=4)
    model = built(WRAPPERS[wrapper])
    resumed = tiny.trainer(callbacks=[DepthScaledLR()], max_epochs=4)
    resumed.fit(model, tiny.loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    for one, other in zip(model.parameters(), expected.lightning_module.parameters(), strict=True):
        assert torch.equal(one, other)


class CopyingGroups(torch.optim.Optimizer):
    """The optimizer inside has groups of its own, as that of ZeroRedundancyOptimizer."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.inside = torch.optim.SGD([dict(group) for group in self.param_groups], lr=lr)

    def step(self, closure=None):
        return self.inside.step(closure)


class Several(torch.optim.Optimizer):
    """Several optimizers as one, whose groups are put together each time."""

    def __init__(self, *inner):
        self.inner, self.defaults, self.state = inner, {}, defaultdict(dict)

    param_groups = property(lambda self: [group for inner in self.inner for group in inner.param_groups])


REFUSED = {
    "CopyingGroups does not share its param groups with the SGD inside it": lambda module: CopyingGroups(
        module.parameters(), lr=1e-2
    ),
    "Several does not keep the param groups that it is given": lambda module: Several(
        torch.optim.SGD(module.parameters(), lr=1e-2)
    ),
    "LookingAhead takes one param group only": lambda module: LookingAhead(torch.optim.LBFGS(module.parameters())),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_split_is_refused_by_kind_with_the_way_out(reason):
    with pytest.raises(MisconfigurationException, match=f"{reason}.*depth_scaled_param_groups"):
        fit(built(REFUSED[reason]), DepthScaledLR())


def test_zero_redundancy_optimizer_is_refused_before_the_first_step(tmp_path):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = built(lambda m: ZeroRedundancyOptimizer(m.parameters(), optimizer_class=torch.optim.SGD, lr=1e-2))
        with pytest.raises(MisconfigurationException, match="ZeroRedundancyOptimizer does not share its param groups"):
            fit(model, DepthScaledLR())
        assert model.global_step == 0
    finally:
        torch.distributed.destroy_process_group()


class OneRate(torch.optim.SGD):
    """Its update is that of the first group's learning rate in every group."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        return super().step(closure)


class NoRate(torch.optim.Optimizer):
    """Sets its own learning rate, as Adafactor with a relative step."""

    def __init__(self, params):
        super().__init__(params, {"lr": None})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            parameter.sub_(parameter.grad, alpha=1e-2)
        return loss


class OneForAll(torch.optim.SGD):
    """Refuses groups with learning rates that differ, as D-Adaptation."""

    def step(self, closure=None):
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise RuntimeError("setting different lr values is not supported")
        return super().step(closure)


class Unscheduled(Optimized):
    def on_after_backward(self):
        pass


@pytest.mark.parametrize(
    "make", [lambda module: OneRate(module.parameters(), lr=1e-2), lambda module: NoRate(module.parameters())]
)
def test_an_optimizer_that_sets_its_own_rate_is_told_by_a_trial(make):
    with pytest.warns(UserWarning, match=r"does not follow the learning rates .* moved 1.00 times as far in a trial"):
        fit(built(make, Unscheduled), DepthScaledLR())


def test_an_optimizer_with_one_rate_for_all_groups_is_refused_unless_the_multiplier_is_one():
    def make(module):
        return OneForAll(module.parameters(), lr=1e-2)

    with pytest.raises(MisconfigurationException, match="OneForAll takes one learning rate for all param groups"):
        fit(built(make, Unscheduled), DepthScaledLR())
    fit(built(make, Unscheduled), DepthScaledLR(multiplier=1.0))


@pytest.mark.parametrize(
    "cls", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Adafactor", "Muon", "ASGD"]
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_the_trial_finds_every_optimizer_of_torch_to_follow_and_leaves_it_as_it_was(cls, weight_decay):
    if not hasattr(torch.optim, cls):
        pytest.skip(f"this torch has no {cls}")
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 4, bias=False))
    groups = [{"params": layer.parameters()} for layer in model]
    # That of Adafactor is the learning rate or one over the root of the steps, whichever is less.
    lr = 0.1 if cls == "Adafactor" else 1.0
    optimizer = getattr(torch.optim, cls)(groups, lr=lr, weight_decay=weight_decay)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [parameter.clone() for parameter in model.parameters()]
    state, random, attributes = optimizer.state_dict(), torch.get_rng_state(), dict(vars(optimizer))
    assert response_to_learning_rate(optimizer, optimizer.param_groups[1]) == pytest.approx(0.5, abs=0.05)
    assert vars(optimizer) == attributes
    assert optimizer.state_dict() == state
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(old, parameter) for old, parameter in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_said_of_an_optimizer_that_only_steps_with_a_closure():
    class WithClosure(torch.optim.SGD):
        def step(self, closure):
            return super().step(closure)

    fit(built(lambda module: WithClosure(module.parameters(), lr=1e-2), Unscheduled), DepthScaledLR())


def test_an_optimizer_that_moves_nothing_is_told():
    class Nothing(torch.optim.SGD):
        def step(self, closure=None):
            return closure() if closure else None

    with pytest.warns(UserWarning, match="Nothing did not move the linear layers in a trial"):
        fit(built(lambda module: Nothing(module.parameters(), lr=1e-2), Unscheduled), DepthScaledLR())
