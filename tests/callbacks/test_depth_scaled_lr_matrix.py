"""The ratio at every optimizer step: every optimizer times every scheduler, through a real Trainer.

Each combination is also run without the callback: what the scheduler does to the user's own groups must not change. A
combination that torch itself does not accept is skipped.
"""

import functools
import inspect

import pytest
import tiny
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from lightning_rank import DepthScaledLR, attach_linear_bottleneck

DEPTH = 4
LR = 1e-3


class CallsSuper(torch.optim.SGD):
    """Its step-pre-hooks run twice a step."""

    def step(self, closure=None):
        return super().step(closure)


def grouped(model):
    halves = list(model.encoder.linear_bottleneck.parameters())
    return [
        {"params": [model.encoder.weight, *halves[:2]], "lr": LR, "weight_decay": 0.1},
        {"params": [model.decoder.weight, halves[2]], "lr": 3 * LR, "name": "mine"},
        {"params": halves[3:], "lr": 5 * LR},
    ]


def over_parameters(cls, **options):
    return lambda model: cls(model.parameters(), **{"lr": LR} | options)


OPTIMIZERS = {
    "SGD": over_parameters(torch.optim.SGD),
    "SGD, momentum": over_parameters(torch.optim.SGD, momentum=0.9),
    "SGD, nesterov": over_parameters(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD, fused": over_parameters(torch.optim.SGD, momentum=0.9, fused=True),
    "Adam": over_parameters(torch.optim.Adam),
    "Adam, foreach": over_parameters(torch.optim.Adam, foreach=True),
    "Adam, fused": over_parameters(torch.optim.Adam, fused=True),
    "Adam, tensor lr": lambda model: torch.optim.Adam(model.parameters(), lr=torch.tensor(LR)),
    "AdamW": over_parameters(torch.optim.AdamW, weight_decay=0.1, amsgrad=True),
    "AdamW, fused": over_parameters(torch.optim.AdamW, fused=True),
    "RMSprop": over_parameters(torch.optim.RMSprop, momentum=0.9),
    "Adagrad": over_parameters(torch.optim.Adagrad),
    "NAdam": over_parameters(torch.optim.NAdam),
    "named_parameters": lambda model: torch.optim.Adam(model.named_parameters(), lr=LR),
    "several groups": lambda model: torch.optim.SGD(grouped(model), lr=LR, momentum=0.9),
    "step calls super().step": over_parameters(CallsSuper, momentum=0.9),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["Muon"] = over_parameters(torch.optim.Muon)


def cycling(optimizer):
    return {"cycle_momentum": "momentum" in optimizer.defaults or "betas" in optimizer.defaults}


def warm_up(optimizer):
    return lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)


def halved(step):
    return 0.5**step


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, halved),
    "LambdaLR, list": lambda o: lr_scheduler.LambdaLR(o, [halved] * len(o.param_groups)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": warm_up,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingLR, eta_min": lambda o: lr_scheduler.CosineAnnealingLR(o, 4, eta_min=LR / 3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, eta_min=LR / 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, LR / 10, LR, 2, **cycling(o)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, LR, total_steps=13, **cycling(o)),
    "OneCycleLR, three phases": lambda o: lr_scheduler.OneCycleLR(
        o, LR, total_steps=13, three_phase=True, **cycling(o)
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [warm_up(o), lr_scheduler.CosineAnnealingLR(o, 6, eta_min=LR / 9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([warm_up(o), lr_scheduler.ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, "max", patience=0, min_lr=LR / 7),
    "ReduceLROnPlateau, list": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, "max", patience=0, min_lr=[LR / 7] * len(o.param_groups)
    ),
    "SWALR": lambda o: SWALR(o, LR / 20, anneal_epochs=3),
}
INTERVALS = [("step", 1), ("step", 3), ("epoch", 1)]
BUILT = ["in configure_optimizers", "earlier"]


def test_the_matrix_has_every_scheduler_of_torch():
    public = {
        name
        for name, cls in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(cls, lr_scheduler.LRScheduler) and not name.startswith("_") and name != "LRScheduler"
    }
    assert public <= {name.split(",")[0] for name in SCHEDULERS}


class BiasFree(tiny.TinyAutoencoder):
    """All parameters are matrices, as Muon wants them."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(tiny.FEATURES, tiny.DIM, bias=False)
        self.decoder = nn.Linear(tiny.DIM, tiny.FEATURES, bias=False)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=False)
        return loss


class Recorder(Callback):
    """The groups as each optimizer step finds them: (index of the partner of a linear group, lr, momentum or betas)."""

    def __init__(self, partners):
        self.steps, self.partners = [], partners

    def on_fit_start(self, trainer, pl_module):
        layers = pl_module.encoder.linear_bottleneck.parameters()
        self.partner_of = {id(layer): partner for layer, partner in zip(layers, self.partners, strict=True)}
        trainer.optimizers[0].register_step_pre_hook(self.read)

    def read(self, optimizer, args, kwargs):
        groups = optimizer.param_groups
        self.steps.append(
            [
                (
                    self.partner_of.get(id(group["params"][0])) if group["params"] else None,
                    float(group["lr"]),
                    group.get("momentum"),
                    group.get("betas"),
                )
                for group in groups
            ]
        )
        held = [id(parameter) for group in groups for parameter in group["params"]]
        assert len(held) == len(set(held)) == 2 + DEPTH, "every parameter is in exactly one group"


def record(optimizer, scheduler, interval, frequency, *callbacks, built=BUILT[0]):
    torch.manual_seed(0)
    model = attach_linear_bottleneck(BiasFree(), dim=tiny.DIM, depth=DEPTH, gain=1.0)

    def build():
        optimizer_ = OPTIMIZERS[optimizer](model)
        config = {"scheduler": SCHEDULERS[scheduler](optimizer_), "monitor": "loss"}
        return {"optimizer": optimizer_, "lr_scheduler": config | {"interval": interval, "frequency": frequency}}

    # LightningCLI builds both long before configure_optimizers is called.
    model.configure_optimizers = build if built == BUILT[0] else functools.partial(lambda earlier: earlier, build())
    recorder = Recorder([0, 0, 1, 2] if optimizer == "several groups" else [0] * DEPTH)
    tiny.trainer(callbacks=[*callbacks, recorder], max_epochs=3).fit(model, tiny.loader())
    return recorder.steps


@functools.cache
def without_callback(*combination):
    try:
        return record(*combination)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'")  # and so it does here
@pytest.mark.parametrize(("interval", "frequency"), INTERVALS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    ("optimizer", "built"),
    [(optimizer, BUILT[0]) for optimizer in OPTIMIZERS] + [(o, BUILT[1]) for o in ("SGD, momentum", "several groups")],
)
def test_ratio_holds_at_every_step_and_the_users_groups_are_scheduled_as_before(
    optimizer, built, scheduler, interval, frequency
):
    expected = without_callback(optimizer, scheduler, interval, frequency)
    if isinstance(expected, str):
        pytest.skip(f"torch does not accept it: {expected}")
    steps = record(optimizer, scheduler, interval, frequency, DepthScaledLR(), built=built)
    assert len(steps) == len(expected) >= 12
    for groups, before in zip(steps, expected, strict=True):
        # The user's groups come first, as they were without the callback.
        users = [settings for _, *settings in groups[: len(before)]]
        assert users == [settings for _, *settings in before]
        assert len(groups) == 2 * len(before)
        for partner, *settings in groups[len(before) :]:
            # 1/4 is exact in binary, so the ratio is, too.
            assert settings == [users[partner][0] / DEPTH, *users[partner][1:]]
