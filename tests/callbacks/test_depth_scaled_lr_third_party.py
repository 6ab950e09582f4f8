"""DepthScaledLR with optimizers of other packages, where they are installed (the extra "optimizers")."""

import warnings

import pytest
import tiny
import torch
from displacement import Displacement, linear_parameters
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_rank import DepthScaledLR, attach_linear_bottleneck
from lightning_rank.optim.response import response_to_learning_rate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # those of the other packages
]
needed = "needs pip install lightning-rank[optimizers]"
pytorch_optimizer = pytest.importorskip("pytorch_optimizer", reason=needed)
schedulefree = pytest.importorskip("schedulefree", reason=needed)
lookahead = pytest.importorskip("timm.optim.lookahead", reason=needed)


class Optimized(tiny.TinyAutoencoder):
    def configure_optimizers(self):
        return type(self).make(self)


class InTraining(Optimized):
    """As optimizers without a schedule want to be told."""

    def on_train_epoch_start(self):
        self.trainer.optimizers[0].train()


class Rates(Callback):
    """The learning rates of the groups right after each step of the optimizer that updates."""

    def __init__(self):
        self.ratios = []

    def on_train_start(self, trainer, pl_module):
        linear = linear_parameters(pl_module)

        def read(optimizer, args, kwargs):
            rates = {id(g["params"][0]) in linear: g["lr"] for g in optimizer.param_groups if g["params"]}
            self.ratios.append(rates[True] / rates[False])

        optimizer = trainer.optimizers[0]
        while inner := next((v for v in vars(optimizer).values() if isinstance(v, torch.optim.Optimizer)), None):
            optimizer = inner
        optimizer.register_step_post_hook(read)


def fit(make, *callbacks, cls=Optimized, **options):
    torch.manual_seed(0)
    model = type("Made", (cls,), {"make": staticmethod(make)})()
    model = attach_linear_bottleneck(model, dim=tiny.DIM, depth=4, gain=1.0)
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), *callbacks], **options)
    trainer.fit(model, tiny.loader())
    return trainer


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1e-2)


WRAPPERS = {
    "pytorch_optimizer.SAM": lambda m: pytorch_optimizer.SAM(m.parameters(), torch.optim.SGD, lr=1e-2),
    "pytorch_optimizer.SAM, Adam": lambda m: pytorch_optimizer.SAM(m.parameters(), torch.optim.Adam, lr=1e-2),
    "pytorch_optimizer.Lookahead": lambda m: pytorch_optimizer.Lookahead(sgd(m), k=100),
    "pytorch_optimizer.OrthoGrad": lambda m: pytorch_optimizer.OrthoGrad(sgd(m)),
    "timm Lookahead": lambda m: lookahead.Lookahead(sgd(m), k=100),
    "pytorch_optimizer.ScheduleFreeWrapper": lambda m: pytorch_optimizer.ScheduleFreeWrapper(sgd(m)),
    "schedulefree.AdamWScheduleFree": lambda m: schedulefree.AdamWScheduleFree(m.parameters(), lr=1e-2, warmup_steps=3),
    "schedulefree.SGDScheduleFree": lambda m: schedulefree.SGDScheduleFree(m.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_ratio_holds_where_the_parameters_change(name):
    rates = Rates()
    fit(WRAPPERS[name], rates, cls=InTraining if "ScheduleFree" in name else Optimized)
    assert rates.ratios == [0.25] * 8


@pytest.mark.parametrize("name", ["pytorch_optimizer.SAM", "pytorch_optimizer.Lookahead", "timm Lookahead"])
def test_displacements_under_wrappers_of_sgd(name):
    displacement = Displacement()
    fit(WRAPPERS[name], displacement)
    torch.testing.assert_close(displacement.steps, [(1e-2, 2.5e-3)] * 8, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", WRAPPERS)
def test_interrupted_and_resumed_equals_unbroken(name, tmp_path):
    cls = InTraining if "ScheduleFree" in name else Optimized
    fit(WRAPPERS[name], cls=cls).save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    expected = fit(WRAPPERS[name], cls=cls, max_epochs=3).lightning_module
    torch.manual_seed(0)
    model = type("Made", (cls,), {"make": staticmethod(WRAPPERS[name])})()
    model = attach_linear_bottleneck(model, dim=tiny.DIM, depth=4, gain=1.0)
    rates = Rates()
    resumed = tiny.trainer(callbacks=[DepthScaledLR(), rates], max_epochs=3)
    resumed.fit(model, tiny.loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert rates.ratios == [0.25] * 4
    if ".SAM" in name:
        return  # its first step uses the gradients from before, which no checkpoint holds
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


BLIND = {
    "Prodigy": lambda m: pytorch_optimizer.Prodigy(m.parameters()),
    "DAdaptAdam": lambda m: pytorch_optimizer.DAdaptAdam(m.parameters()),
    "AdaFactor": lambda m: pytorch_optimizer.AdaFactor(m.parameters(), lr=None, relative_step=True),
}


@pytest.mark.parametrize("name", BLIND)
def test_optimizers_that_set_their_own_rate_are_told(name):
    with pytest.warns(UserWarning, match=f"DepthScaledLR: {name} does not follow the learning rates"):
        fit(BLIND[name])


def test_adafactor_without_a_relative_step_follows():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="DepthScaledLR")
        fit(lambda m: pytorch_optimizer.AdaFactor(m.parameters(), lr=1e-3, relative_step=False))


def test_optimizers_that_refuse_rates_that_differ_are_refused_at_the_start():
    prodigyopt = pytest.importorskip("prodigyopt", reason=needed)
    with pytest.raises(MisconfigurationException, match="Prodigy takes one learning rate for all param groups"):
        fit(lambda m: prodigyopt.Prodigy(m.parameters()))


def test_the_trial_divides_the_optimizers_of_a_whole_package():
    """Those that are known to follow are not warned of, and those that are known not to are."""
    blind = []
    for name in pytorch_optimizer.get_supported_optimizers():
        model = nn.ModuleList([nn.Linear(6, 4), nn.Linear(4, 4, bias=False)])
        try:
            optimizer = pytorch_optimizer.load_optimizer(name)([{"params": layer.parameters()} for layer in model])
        except Exception:  # it wants more than parameters
            continue
        response = response_to_learning_rate(optimizer, optimizer.param_groups[1])
        if response is not None and response > 0.75:
            blind.append(name)
    follow = {"sgd", "adamw", "lion", "adabelief", "lamb", "lars", "radam", "soap", "adopt", "madgrad", "tiger", "came"}
    assert follow <= set(pytorch_optimizer.get_supported_optimizers())
    assert not follow & set(blind)
    assert {"adafactor", "prodigy", "dadaptadam", "dadaptsgd", "dadaptlion"} <= set(blind)
