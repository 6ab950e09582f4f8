"""DepthScaledLR: the ratio holds at every step, and nothing else changes."""

import copy
import math
import pickle
from functools import partial

import pytest
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import lr_scheduler

from lightning_rank import DepthScaledLR, depth_scaled_param_groups


class Ratios(Callback):
    """Records lr(linear) / lr(base) at each optimizer step."""

    def __init__(self):
        self.ratios = []

    def on_fit_start(self, trainer, pl_module):
        # Registered after DepthScaledLR's own hook, it runs after it, and reads what the step itself will use.
        trainer.optimizers[0].register_step_pre_hook(self.read)

    def read(self, optimizer, args, kwargs):
        groups = {group["name"]: group["lr"] for group in optimizer.param_groups}
        self.ratios.append(groups["encoder.linear_bottleneck"] / groups["base"])


def fit(configure, *callbacks, depth=4, model=None, **options):
    model = model or tiny.tiny(depth=depth)
    model.configure_optimizers = partial(configure, model)
    trainer = tiny.trainer(callbacks=list(callbacks), **options)
    trainer.fit(model, tiny.loader())
    return trainer, model


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


SCHEDULERS = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=10),
    "CosineAnnealingLR, eta_min": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 5, eta_min=1e-3),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 0.5**step),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 1e-3, 1e-1, 2, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3, eta_min=1e-3),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_ratio_holds_at_every_step_under_every_scheduler(scheduler):
    def configure(model):
        optimizer = adam(model)
        return [optimizer], [{"scheduler": SCHEDULERS[scheduler](optimizer), "interval": "step"}]

    ratios = Ratios()
    fit(configure, DepthScaledLR(), ratios)
    assert ratios.ratios == [0.25] * 8


def test_callbacks_behind_it_read_the_ratio_before_the_step():
    """Whatever a callback in front of it has set, once a batch and once an epoch."""
    read = []

    class WarmUp(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.optimizers[0].param_groups[0]["lr"] = 7.0

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.optimizers[0].param_groups[0]["lr"] = 0.1 * (trainer.global_step + 1)

    class Read(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            base, linear = trainer.optimizers[0].param_groups
            read.append((base["lr"], linear["lr"]))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.on_train_epoch_start(trainer, pl_module)

    fit(adam, WarmUp(), DepthScaledLR(), Read(), max_epochs=2, limit_train_batches=2)
    expected = [7.0, 0.1, 0.2, 7.0, 0.3, 0.4]
    assert read == [(pytest.approx(lr), pytest.approx(lr / 4)) for lr in expected]


def test_without_the_tie_a_scheduler_parts_the_groups():
    def configure(model):
        optimizer = adam(model)
        return [optimizer], [{"scheduler": lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10), "interval": "step"}]

    ratios = Ratios()
    fit(configure, DepthScaledLR(tie=False), ratios)
    assert ratios.ratios[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("depth", "multiplier", "expected"), [(1, "inverse_depth", 1), (8, "inverse_depth", 0.125), (8, 0.3, 0.3)]
)
def test_the_multiplier_is_that_of_the_depth_or_the_given_one(depth, multiplier, expected):
    ratios = Ratios()
    fit(adam, DepthScaledLR(multiplier), ratios, depth=depth)
    assert ratios.ratios == pytest.approx([expected] * 8)


def test_training_equals_that_with_explicit_groups():
    def explicit(model):
        return torch.optim.Adam(depth_scaled_param_groups(model, 1e-2))

    _, ours = fit(adam, DepthScaledLR())
    _, theirs = fit(explicit)
    _, unscaled = fit(adam)
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, expected)
    assert not torch.equal(ours.encoder.weight, unscaled.encoder.weight)


def test_every_trainable_parameter_is_in_exactly_one_named_group():
    trainer, model = fit(adam, DepthScaledLR())
    groups = trainer.optimizers[0].param_groups
    assert [(group["name"], len(group["params"])) for group in groups] == [
        ("base", 4),
        ("encoder.linear_bottleneck", 4),
    ]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_several_user_groups_are_split_each_on_its_own():
    def configure(model):
        halves = list(model.encoder.linear_bottleneck.parameters())
        return torch.optim.SGD(
            [
                {"params": [model.encoder.weight, model.encoder.bias, *halves[:2]], "lr": 0.1, "weight_decay": 0.5},
                {"params": [*model.decoder.parameters(), *halves[2:]], "lr": 0.2, "name": "decoder"},
            ],
            lr=1.0,
        )

    trainer, _ = fit(configure, DepthScaledLR())
    shown = [(g["name"], g["lr"], g["weight_decay"], len(g["params"])) for g in trainer.optimizers[0].param_groups]
    assert shown == [
        ("pg1", 0.1, 0.5, 2),
        ("decoder", 0.2, 0, 2),
        ("pg1/encoder.linear_bottleneck", 0.025, 0.5, 2),
        ("decoder/encoder.linear_bottleneck", 0.05, 0, 2),
    ]


def test_a_group_that_is_linear_throughout_keeps_an_empty_partner():
    def configure(model):
        rest = [model.encoder.weight, model.encoder.bias, *model.decoder.parameters()]
        optimizer = torch.optim.Adam(
            [{"params": rest}, {"params": model.encoder.linear_bottleneck.parameters(), "lr": 0.1}], lr=0.01
        )
        return [optimizer], [lr_scheduler.OneCycleLR(optimizer, [0.5, 0.8], total_steps=9)]

    trainer, _ = fit(configure, DepthScaledLR(), max_epochs=1)
    rest, empty, linear = trainer.optimizers[0].param_groups
    assert [len(group["params"]) for group in (rest, empty, linear)] == [4, 0, 4]
    assert linear["lr"] == empty["lr"] / 4 != rest["lr"] / 4


def test_parameter_names_go_with_their_parameters():
    def configure(model):
        return torch.optim.Adam(model.named_parameters(), lr=1e-2)

    trainer, model = fit(configure, DepthScaledLR())
    names = dict(model.named_parameters())
    for group in trainer.optimizers[0].param_groups:
        assert all(
            names[name] is parameter for name, parameter in zip(group["param_names"], group["params"], strict=True)
        )


def test_a_tensor_learning_rate_stays_the_same_tensor():
    class First(Callback):
        def on_fit_start(self, trainer, pl_module):
            self.lrs = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def configure(model):
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-2))
        return [optimizer], [{"scheduler": lr_scheduler.ExponentialLR(optimizer, 0.5), "interval": "step"}]

    first = First()
    trainer, _ = fit(configure, DepthScaledLR(), first)
    groups = trainer.optimizers[0].param_groups
    assert all(group["lr"] is lr for group, lr in zip(groups, first.lrs, strict=True))
    assert groups[0]["lr"] is not groups[1]["lr"]


def test_the_curves_are_named(tmp_path):
    fit(adam, DepthScaledLR(), LearningRateMonitor("step"), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    header, first, *_ = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["lr-Adam/encoder.linear_bottleneck"]) == 0.25 * float(row["lr-Adam/base"]) == 2.5e-3


def test_the_assignment_is_said_once(caplog):
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(adam, DepthScaledLR())
    said = [record.message for record in caplog.records if "DepthScaledLR" in record.message]
    assert len(said) == 1
    assert [line.split() for line in said[0].splitlines()[1:]] == [
        ["base", "4", "tensors", "lr", "x", "1"],
        ["encoder.linear_bottleneck", "4", "tensors", "lr", "x", "0.25"],
    ]


def test_nothing_is_left_behind():
    model = tiny.tiny()
    trainer = tiny.trainer(callbacks=[DepthScaledLR()])
    built = lr_scheduler.LambdaLR.__init__
    trainer.fit(model, tiny.loader())
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert not trainer.optimizers[0]._optimizer_load_state_dict_pre_hooks
    assert "setup_optimizers" not in vars(trainer.strategy)
    assert lr_scheduler.LambdaLR.__init__ is built


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_made_during_fit_has_its_own_configure_optimizers(duplicate):
    class Copy(Callback):
        def on_train_start(self, trainer, pl_module):
            fabric, pl_module._trainer = pl_module._trainer, None
            self.twin = duplicate(pl_module)
            pl_module._trainer = fabric

    model, copier = tiny.tiny(), Copy()
    tiny.trainer(callbacks=[DepthScaledLR(), copier], max_epochs=1).fit(model, tiny.loader())
    (group,) = copier.twin.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in copier.twin.parameters()}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_the_callback_itself_can_be_copied_before_and_after_fit(duplicate):
    callback = duplicate(DepthScaledLR(0.5))
    fit(adam, callback)
    ratios = Ratios()
    fit(adam, duplicate(callback), ratios)
    assert ratios.ratios == [0.5] * 8


def test_the_instances_own_configure_optimizers_is_there_again():
    model = tiny.tiny()
    own = partial(adam, model)
    model.configure_optimizers = own
    tiny.trainer(callbacks=[DepthScaledLR()]).fit(model, tiny.loader())
    assert vars(model)["configure_optimizers"] is own


def test_an_exception_in_fit_leaves_nothing_behind_and_another_fit_works():
    class Failing(Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("on purpose")

    model, callback = tiny.tiny(), DepthScaledLR()
    with pytest.raises(RuntimeError, match="on purpose"):
        tiny.trainer(callbacks=[callback, Failing()]).fit(model, tiny.loader())
    ratios = Ratios()
    tiny.trainer(callbacks=[callback, ratios]).fit(model, tiny.loader())
    assert ratios.ratios == [0.25] * 8


def test_the_classes_of_schedulers_are_whole_again_when_configure_optimizers_raises():
    built, step = lr_scheduler.LambdaLR.__init__, lr_scheduler.LRScheduler.step

    def configure(model):
        assert lr_scheduler.LambdaLR.__init__ is not built
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        fit(configure, DepthScaledLR())
    assert lr_scheduler.LambdaLR.__init__ is built
    assert lr_scheduler.LRScheduler.step is step


def test_lbfgs_is_refused_with_the_reason_where_it_holds_linear_layers():
    with pytest.raises(MisconfigurationException, match="LBFGS takes one param group only"):
        fit(lambda model: torch.optim.LBFGS(model.parameters()), DepthScaledLR())


def test_a_bottleneck_in_no_optimizer_is_named():
    with pytest.raises(
        MisconfigurationException, match=r"4 of 4 layers of 'encoder.linear_bottleneck' are in no optimizer"
    ):
        fit(lambda model: torch.optim.Adam(model.decoder.parameters()), DepthScaledLR())


def test_scaling_twice_is_refused():
    with pytest.raises(RuntimeError, match="scaled by depth already"):
        fit(lambda model: torch.optim.Adam(depth_scaled_param_groups(model, 1e-2)), DepthScaledLR())


def test_a_module_without_a_bottleneck_is_refused_and_one_of_depth_zero_is_not():
    with pytest.raises(
        ValueError, match="module: expected a LinearBottleneck somewhere in TinyAutoencoder, found none"
    ):
        fit(adam, DepthScaledLR(), model=tiny.TinyAutoencoder())
    trainer, _ = fit(adam, DepthScaledLR(), depth=0)
    assert len(trainer.optimizers[0].param_groups) == 1


def test_frozen_layers_are_split_too_and_need_no_optimizer():
    model = tiny.tiny()
    model.encoder.linear_bottleneck.requires_grad_(False)
    trainer, _ = fit(adam, DepthScaledLR(), model=model)
    groups = trainer.optimizers[0].param_groups
    assert [(group["name"], group["lr"], len(group["params"])) for group in groups] == [
        ("base", 1e-2, 4),
        ("encoder.linear_bottleneck", 2.5e-3, 4),
    ]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    outside = [*model.encoder.linear_bottleneck.parameters()]
    others = [p for p in model.parameters() if all(p is not layer for layer in outside)]
    trainer, _ = fit(lambda model: torch.optim.Adam(others, lr=1e-2), DepthScaledLR(), model=model)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [1e-2]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("linear_bottleneck" in name), name


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_bad_multipliers_are_refused(bad):
    with pytest.raises(ValueError, match="multiplier: expected 'inverse_depth' or a positive finite number, got"):
        DepthScaledLR(bad)
    with pytest.raises(TypeError, match="multiplier: expected 'inverse_depth' or a number, got 'depth'"):
        DepthScaledLR("depth")


class Keep(Ratios):
    """Writes weights and ratios where the process that started the others finds them."""

    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    def on_train_end(self, trainer, pl_module):
        torch.save(
            (pl_module.state_dict(), self.ratios), self.directory / f"{trainer.world_size}-{trainer.global_rank}"
        )


def test_two_processes_keep_the_ratio_and_agree_with_one(tmp_path):
    callbacks = [DepthScaledLR(), Keep(tmp_path)]
    tiny.trainer(callbacks=callbacks, devices=2, strategy="ddp_fork", max_epochs=4).fit(tiny.tiny(), tiny.loader(16, 8))
    # The two batches of 8, one in each process, are the batch of 16 that one process sees, whoever shuffles.
    tiny.trainer(callbacks=[DepthScaledLR(), Keep(tmp_path)], max_epochs=4).fit(tiny.tiny(), tiny.loader(16, 16))
    alone, _ = torch.load(tmp_path / "1-0")
    for name in ("2-0", "2-1"):
        weights, ratios = torch.load(tmp_path / name)
        assert ratios == [0.25] * 4
        torch.testing.assert_close(weights, alone)


def test_a_group_may_be_named_by_a_number():
    trainer, _ = fit(lambda model: torch.optim.SGD([{"params": model.parameters(), "name": 0}]), DepthScaledLR())
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == [0, "0/encoder.linear_bottleneck"]
