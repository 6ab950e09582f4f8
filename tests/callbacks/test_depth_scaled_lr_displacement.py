"""The promise of DepthScaledLR as displacements: wherever learning rates are set by hand, the ratio holds."""

import pytest
import tiny
import torch
from displacement import Displacement
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from lightning_rank import DepthScaledLR, attach_linear_bottleneck

HOOKS = [
    "on_train_batch_start",
    "training_step",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_step",
    "on_train_batch_end",
]
CALLBACK_HOOKS = [hook for hook in HOOKS if hasattr(Callback, hook)]
WARM_UP = [1e-2 * min(1.0, (step + 1) / 5) for step in range(8)]


class Plain(tiny.TinyAutoencoder):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


class Manual(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class ManualWithClosure(Manual):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            self.manual_backward(Plain.training_step(self, batch, batch_idx))

        optimizer.step(closure)


def set_rates(module):
    """The classic warm-up by hand."""
    for optimizer in module.trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = WARM_UP[module.global_step]


def warming_up(cls, hook):
    """The class, with a warm-up at the beginning of one of its hooks."""

    def warm(self, *args, **kwargs):
        if self.global_step < len(WARM_UP):
            set_rates(self)
        return getattr(cls, hook)(self, *args, **kwargs)

    return type(f"In_{hook}", (cls,), {hook: warm})


def displaced(model, *callbacks, **options):
    """The learning rates in effect at each of eight steps."""
    torch.manual_seed(0)
    model = attach_linear_bottleneck(model, dim=tiny.DIM, depth=4, gain=1.0)
    displacement = Displacement()
    tiny.trainer(callbacks=[*callbacks, displacement], **options).fit(model, tiny.loader())
    assert len(displacement.steps) == 8
    return displacement.steps


def check(steps, hook="training_step"):
    rates = [1e-2, *WARM_UP[1:]] if hook == "on_train_batch_end" else WARM_UP
    torch.testing.assert_close(steps, [(rate, rate / 4) for rate in rates], rtol=1e-3, atol=0)


@pytest.mark.parametrize("hook", HOOKS)
def test_rates_set_in_a_hook_of_the_module(hook):
    check(displaced(warming_up(Plain, hook)(), DepthScaledLR()), hook)


@pytest.mark.parametrize("cls", [Manual, ManualWithClosure])
@pytest.mark.parametrize("hook", ["training_step", "on_after_backward", "on_before_optimizer_step"])
def test_rates_set_under_manual_optimization(cls, hook):
    check(displaced(warming_up(cls, hook)(), DepthScaledLR()), hook)


def test_rates_set_in_a_closure_of_the_user():
    class InClosure(ManualWithClosure):
        def manual_backward(self, loss, *args, **kwargs):
            super().manual_backward(loss, *args, **kwargs)
            set_rates(self)

    check(displaced(InClosure(), DepthScaledLR()))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hook", CALLBACK_HOOKS)
def test_rates_set_in_a_hook_of_another_callback(hook, first):
    def warm(trainer, pl_module, *args):
        if pl_module.global_step < len(WARM_UP):
            set_rates(pl_module)

    other = Callback()
    setattr(other, hook, warm)
    callbacks = [other, DepthScaledLR()] if first else [DepthScaledLR(), other]
    check(displaced(Plain(), *callbacks), hook)


def test_rates_set_by_index():
    class ByIndex(tiny.TinyAutoencoder):
        def configure_optimizers(self):
            groups = [{"params": self.encoder.parameters()}, {"params": self.decoder.parameters()}]
            return torch.optim.SGD(groups, lr=1e-2)

        def on_train_batch_start(self, batch, batch_idx):
            self.optimizers().param_groups[1]["lr"] = 1e-3

    class Rates(Displacement):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            moved = {n: (self.before[n] - p.detach()).norm() / self.gradients[n].norm() for n, p in named(pl_module)}
            self.steps.append({name: round(float(rate), 5) for name, rate in moved.items()})

    def named(module):
        return list(module.named_parameters())

    rates = Rates()
    model = attach_linear_bottleneck(ByIndex(), dim=tiny.DIM, depth=4, gain=1.0)
    tiny.trainer(callbacks=[DepthScaledLR(), rates]).fit(model, tiny.loader())
    linear = [f"encoder.linear_bottleneck.layers.{layer}.weight" for layer in range(4)]
    expected = dict.fromkeys(["encoder.weight", "encoder.bias"], 1e-2) | dict.fromkeys(linear, 2.5e-3)
    assert rates.steps == [expected | dict.fromkeys(["decoder.weight", "decoder.bias"], 1e-3)] * 8


def test_with_a_gradient_scaler():
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**7))
    for hook in ("training_step", "on_before_optimizer_step"):
        steps = displaced(warming_up(Plain, hook)(), DepthScaledLR(), plugins=scaled)
        torch.testing.assert_close(steps, [(rate, rate / 4) for rate in WARM_UP], rtol=2e-2, atol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own
def test_with_a_compiled_optimizer():
    class Compiled(Plain):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.step = torch.compile(optimizer.step, backend="eager")
            return optimizer

    check(displaced(warming_up(Compiled, "on_train_batch_start")(), DepthScaledLR()))


class Replacing(Plain):
    """Takes another optimizer in the middle of training."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def replace(self, where):
        if where == self.where and self.global_step == 3:
            self.trainer.optimizers = [torch.optim.SGD(self.parameters(), lr=3e-2)]

    def on_train_batch_start(self, batch, batch_idx):
        self.replace("on_train_batch_start")

    def training_step(self, batch, batch_idx):
        self.replace("training_step")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("where", "step"), [("on_train_batch_start", 3), ("training_step", 4)])
def test_an_optimizer_that_replaces_another_is_split_too(where, step):
    rates = [1e-2] * step + [3e-2] * (8 - step)
    steps = displaced(Replacing(where), DepthScaledLR())
    torch.testing.assert_close(steps, [(rate, rate / 4) for rate in rates], rtol=1e-3, atol=0)


class OfNoClass:
    """An optimizer without torch's class, and so without hooks."""

    def __init__(self, params, lr):
        self.param_groups, self.defaults, self.state = [{"params": list(params), "lr": lr}], {"lr": lr}, {}

    def zero_grad(self, set_to_none=True):
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            parameter.grad = None

    def step(self, closure=None):
        loss = closure() if closure else None
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.sub_(parameter.grad * group["lr"])
        return loss

    def state_dict(self):
        return {"param_groups": [{"lr": group["lr"]} for group in self.param_groups]}

    def load_state_dict(self, state_dict):
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            group |= saved


def made(cls, optimizer):
    torch.manual_seed(0)
    model = attach_linear_bottleneck(cls(), dim=tiny.DIM, depth=4, gain=1.0)
    model.configure_optimizers = lambda: optimizer(model.parameters(), lr=1e-2)
    return model


def test_an_optimizer_without_hooks_is_tied_after_the_closure_and_left_as_it_was():
    class InTheStep(tiny.TinyAutoencoder):
        def training_step(self, batch, batch_idx):
            self.trainer.optimizers[0].param_groups[0]["lr"] = 1e-2 * (self.global_step + 1)
            return super().training_step(batch, batch_idx)

        def on_before_optimizer_step(self, optimizer):
            for group in optimizer.param_groups:
                group["lr"] = 2e-2 * (self.global_step + 1)

    displacement = Displacement()
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), displacement])
    trainer.fit(made(InTheStep, OfNoClass), tiny.loader())
    rates = [2e-2 * (step + 1) for step in range(8)]
    torch.testing.assert_close(displacement.steps, [(rate, rate / 4) for rate in rates], rtol=1e-3, atol=0)
    assert not {"step", "load_state_dict"} & vars(trainer.optimizers[0]).keys()


class HookedLater(tiny.TinyAutoencoder):
    """The user's hook comes after that of the callback, and there is no closure within the step."""

    def on_train_start(self):
        def warm_up(optimizer, args, kwargs):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (self.global_step + 1)

        self.trainer.optimizers[0].register_step_pre_hook(warm_up)


def test_a_hook_of_the_users_that_comes_later_does_not_part_the_groups():
    displacement = Displacement()
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), displacement], plugins=[precision])
    trainer.fit(made(HookedLater, torch.optim.SGD), tiny.loader())
    rates = [1e-2 * (step + 1) for step in range(8)]
    torch.testing.assert_close(displacement.steps, [(rate, rate / 4) for rate in rates], rtol=1e-3, atol=0)
