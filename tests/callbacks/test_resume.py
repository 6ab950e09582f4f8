"""A run that was interrupted and resumed ends as the unbroken one."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import lr_scheduler

from lightning_rank import (
    DepthScaledLR,
    EffectiveRankMonitor,
    LinearBottleneck,
    attach_linear_bottleneck,
    depth_scaled_param_groups,
)

EPOCHS = 5
SPLIT_BY_0_1 = Path(__file__).parents[1] / "data/split_0.1.ckpt"


class Crash(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            raise RuntimeError("on purpose")


class Keep(Callback):
    """Writes how each process ended."""

    def __init__(self, directory, monitor):
        self.directory, self.monitor = directory, monitor

    def on_fit_end(self, trainer, pl_module):
        optimizer = trainer.optimizers[0].state_dict()
        torch.save((pl_module.state_dict(), optimizer, self.monitor.history), self.directory / str(trainer.global_rank))


def run(directory, *callbacks, ckpt_path=None, **options):
    directory.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = tiny.tiny()

    def configure_optimizers():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    model.configure_optimizers = configure_optimizers
    monitor = EffectiveRankMonitor()
    checkpoint = ModelCheckpoint(directory, "last", enable_version_counter=False)
    trainer = tiny.trainer(
        callbacks=[DepthScaledLR(), monitor, *callbacks, checkpoint, Keep(directory, monitor)],
        max_epochs=EPOCHS,
        enable_checkpointing=True,
        **options,
    )
    trainer.fit(model, tiny.loader(), tiny.loader(20, 8, seed=2), ckpt_path=ckpt_path, weights_only=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_and_resumed_equals_unbroken(processes, tmp_path):
    options = {} if processes == 1 else {"devices": 2, "strategy": "ddp_fork"}
    run(tmp_path / "unbroken", **options)
    with pytest.raises(Exception, match="on purpose"):
        run(tmp_path / "resumed", Crash(epoch=3), **options)
    run(tmp_path / "resumed", ckpt_path=tmp_path / "resumed/last.ckpt", **options)
    for process in range(processes):
        unbroken = torch.load(tmp_path / "unbroken" / str(process))
        resumed = torch.load(tmp_path / "resumed" / str(process))
        for name, weight in unbroken[0].items():
            assert torch.equal(weight, resumed[0][name]), name
        assert resumed[1]["param_groups"] == unbroken[1]["param_groups"]
        torch.testing.assert_close(resumed[1]["state"], unbroken[1]["state"], rtol=0, atol=0)
        assert resumed[2] == unbroken[2]
        assert [row["epoch"] for row in resumed[2]] == list(range(EPOCHS))


SCHEDULERS = {
    "none": None,
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=60),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 30, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, 4),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.CosineAnnealingWarmRestarts(o, 7)], [5]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


class LRs(Callback):
    """The learning rates that each step used, and what was restored, by name of parameter."""

    def on_fit_start(self, trainer, pl_module):
        self.steps = []
        trainer.optimizers[0].register_step_post_hook(
            lambda o, args, kwargs: self.steps.append([float(group["lr"]) for group in o.param_groups])
        )

    def on_train_start(self, trainer, pl_module):
        state = trainer.optimizers[0].state
        self.restored = {
            name: {key: value.clone() for key, value in state[parameter].items()}
            for name, parameter in pl_module.named_parameters()
            if parameter in state
        }


def stage(path, epochs, *callbacks, scheduler="none", model=None, optimizer=torch.optim.Adam, resume=True):
    """Train to ``epochs``, from the checkpoint at ``path`` if there is one, and save there."""
    torch.manual_seed(1)
    model = model or tiny.tiny()

    def configure_optimizers():
        built = optimizer(model.parameters(), lr=1e-2)
        if SCHEDULERS[scheduler] is None:
            return built
        return [built], [{"scheduler": SCHEDULERS[scheduler](built), "interval": "step"}]

    model.configure_optimizers = configure_optimizers
    lrs = LRs()
    trainer = tiny.trainer(callbacks=[*callbacks, lrs], max_epochs=epochs)
    ckpt_path = path if resume and path.exists() else None
    trainer.fit(model, tiny.loader(), ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    trainer.save_checkpoint(path, weights_only=False)
    return trainer, model, lrs


def saved_state(path, model):
    """The optimizer state in a checkpoint of a run with one group, by name of parameter."""
    (optimizer,) = torch.load(path, weights_only=True)["optimizer_states"]
    (group,) = optimizer["param_groups"]
    names = [name for name, _ in model.named_parameters()]
    return {name: optimizer["state"][key] for name, key in zip(names, group["params"], strict=True)}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_run_without_the_callback_goes_on_with_it(scheduler, tmp_path):
    path = tmp_path / "last.ckpt"
    _, _, unbroken = stage(tmp_path / "unbroken.ckpt", 5, scheduler=scheduler)
    _, model, _ = stage(path, 2, scheduler=scheduler)
    saved = saved_state(path, model)
    _, _, lrs = stage(path, 5, DepthScaledLR(), scheduler=scheduler)
    assert set(lrs.restored) == set(saved), "every parameter has its state back"
    for name, state in saved.items():
        for key, value in state.items():
            torch.testing.assert_close(lrs.restored[name][key], value, rtol=0, atol=0)
    assert [base for base, _ in lrs.steps] == pytest.approx([base for (base,) in unbroken.steps[8:]], rel=1e-12)
    assert all(linear == base / 4 for base, linear in lrs.steps)
    # And on, now with to with.
    _, _, lrs = stage(path, 6, DepthScaledLR(), scheduler=scheduler)
    assert len(lrs.steps) == 4
    assert all(linear == base / 4 for base, linear in lrs.steps)


def test_states_are_migrated_by_parameter_whatever_their_order(tmp_path):
    def interleaved(parameters, lr):
        first, *rest = parameters
        return torch.optim.Adam([*rest[::-1], first], lr=lr)

    path = tmp_path / "last.ckpt"
    trainer, model, _ = stage(path, 2, optimizer=interleaved)
    expected = {name: trainer.optimizers[0].state[p]["exp_avg"] for name, p in model.named_parameters()}
    _, _, lrs = stage(path, 3, DepthScaledLR(), optimizer=interleaved)
    for name, value in expected.items():
        assert torch.equal(lrs.restored[name]["exp_avg"], value)


@pytest.mark.parametrize("crash", [False, True])
def test_states_go_to_their_parameters_in_an_optimizer_that_an_earlier_fit_has_split(crash, tmp_path):
    path = tmp_path / "last.ckpt"
    trainer, model, _ = stage(path, 2)
    expected = {name: trainer.optimizers[0].state[p]["exp_avg"] for name, p in model.named_parameters()}
    model = tiny.tiny()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with pytest.raises(RuntimeError, match="on purpose") if crash else nullcontext():
        callbacks = [DepthScaledLR(), Crash(0)] if crash else [DepthScaledLR()]
        stage(tmp_path / "other.ckpt", 1, *callbacks, model=model, optimizer=lambda parameters, lr: optimizer)
    _, _, lrs = stage(path, 3, DepthScaledLR(), model=model, optimizer=lambda parameters, lr: optimizer)
    for name, value in expected.items():
        assert torch.equal(lrs.restored[name]["exp_avg"], value), name


def test_a_run_without_the_bottleneck_goes_on_with_it(tmp_path):
    path = tmp_path / "last.ckpt"
    plain = tiny.TinyAutoencoder()
    stage(path, 2, model=plain)
    saved = saved_state(path, plain)
    model = attach_linear_bottleneck(tiny.TinyAutoencoder(), dim=tiny.DIM, gain=1.0, allow_missing=True)
    _, _, lrs = stage(path, 3, DepthScaledLR(), model=model)
    assert set(lrs.restored) == set(saved)
    for name, state in saved.items():
        assert torch.equal(lrs.restored[name]["exp_avg"], state["exp_avg"])
    assert all(linear == base / 4 for base, linear in lrs.steps)


def test_without_the_callback_lightning_asks_for_it_and_a_multiplier_of_one_leaves_it_without_effect(tmp_path):
    path = tmp_path / "last.ckpt"
    stage(path, 2, DepthScaledLR())
    with (
        pytest.warns(UserWarning, match=r"add the following callbacks: \[.DepthScaledLR.\]"),
        pytest.raises(ValueError, match="different number of parameter groups"),
    ):
        stage(path, 3)
    with pytest.warns(UserWarning, match="goes on with"):
        _, _, lrs = stage(path, 3, DepthScaledLR(multiplier=1.0))
    assert all(linear == base for base, linear in lrs.steps)


def test_another_multiplier_is_said_and_holds(tmp_path):
    path = tmp_path / "last.ckpt"
    stage(path, 2, DepthScaledLR(), scheduler="OneCycleLR")
    with pytest.warns(UserWarning, match=r"trained with the multipliers .*0.25.*goes on with .*0.5"):
        trainer, _, lrs = stage(path, 4, DepthScaledLR(0.5), scheduler="OneCycleLR")
    assert len(lrs.steps) == 8
    assert all(linear == base / 2 for base, linear in lrs.steps)
    assert trainer.optimizers[0].param_groups[1]["depth_multiplier"] == 0.5


@pytest.mark.parametrize("depth", [2, 8])
def test_another_depth_is_said_and_holds_where_the_module_allows_it(depth, tmp_path):
    path = tmp_path / "last.ckpt"
    trainer, before, _ = stage(path, 2, DepthScaledLR(), scheduler="OneCycleLR")
    saved = {name: trainer.optimizers[0].state[p]["exp_avg"] for name, p in before.named_parameters()}
    model = tiny.tiny(depth=depth)
    model.strict_loading = False
    with pytest.warns(UserWarning, match=rf"trained with the multipliers .*0.25.*goes on with .*{1 / depth}"):
        trainer, _, lrs = stage(path, 4, DepthScaledLR(), scheduler="OneCycleLR", model=model)
    assert len(lrs.steps) == 8
    assert all(linear == base / depth for base, linear in lrs.steps)
    assert set(lrs.restored) == set(saved) & {name for name, _ in model.named_parameters()}
    for name, state in lrs.restored.items():
        assert torch.equal(state["exp_avg"], saved[name])
    assert len(trainer.optimizers[0].state) == 4 + depth, "nothing is left of layers that are gone"


def test_another_depth_is_refused_with_the_names_of_the_layers(tmp_path):
    path = tmp_path / "last.ckpt"
    stage(path, 1, DepthScaledLR())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*linear_bottleneck\.layers\.2\.weight"):
        stage(path, 2, DepthScaledLR(), model=tiny.tiny(depth=2))


def as_saved_by_0_1(depth=4):
    """The module whose checkpoint is ``split_0.1.ckpt``: two groups, each with layers of the bottleneck."""
    model = tiny.tiny(depth=depth)

    def configure_optimizers():
        layers = list(model.encoder.linear_bottleneck.parameters())
        encoder, decoder = [model.encoder.weight, model.encoder.bias], list(model.decoder.parameters())
        groups = [
            {"params": [*encoder, *layers[:2]]},
            {"params": [*layers[2:], *decoder], "lr": 2e-2, "name": "decoder"},
        ]
        optimizer = torch.optim.Adam(groups, lr=1e-2)
        scheduler = lr_scheduler.LambdaLR(optimizer, [lambda step: 0.9**step, lambda step: 0.8**step])
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    model.configure_optimizers = configure_optimizers
    return model


def test_a_checkpoint_with_linear_groups_right_behind_their_partners_resumes_as_it_would_have_then():
    saved = torch.load(SPLIT_BY_0_1, weights_only=True)
    (optimizer,) = saved["optimizer_states"]
    assert [group["name"] for group in optimizer["param_groups"]] == [
        "pg1",
        "pg1/linear_bottleneck",
        "decoder",
        "decoder/linear_bottleneck",
    ]
    layers = [f"encoder.linear_bottleneck.layers.{layer}.weight" for layer in range(4)]
    order = ["encoder.weight", "encoder.bias", *layers[:2], "decoder.weight", "decoder.bias", *layers[2:]]
    model, lrs = as_saved_by_0_1(), LRs()
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), lrs], max_epochs=3)
    trainer.fit(model, tiny.loader(), ckpt_path=SPLIT_BY_0_1, weights_only=True)
    assert set(lrs.restored) == set(order)
    for key, name in enumerate(order):
        for entry, value in optimizer["state"][key].items():
            torch.testing.assert_close(lrs.restored[name][entry], value, rtol=0, atol=0)
    # The first step is at the learning rates that were saved.
    rates = [(1e-2 * 0.9**8, 2e-2 * 0.9**8), *((1e-2 * 0.9**step, 2e-2 * 0.8**step) for step in range(9, 12))]
    assert lrs.steps == [pytest.approx([one, other, one / 4, other / 4], rel=1e-12) for one, other in rates]
    (scheduler,) = trainer.lr_scheduler_configs
    assert scheduler.scheduler.base_lrs == [1e-2, 2e-2]
    assert [group["depth_partner"] for group in trainer.optimizers[0].param_groups[2:]] == [0, 1]


def test_a_checkpoint_of_0_1_with_another_multiplier_is_said():
    with pytest.warns(UserWarning, match=r"trained with the multipliers .*'pg1/linear_bottleneck': 0.25.*goes on with"):
        tiny.trainer(callbacks=[DepthScaledLR(0.5)], max_epochs=3).fit(
            as_saved_by_0_1(), tiny.loader(), ckpt_path=SPLIT_BY_0_1, weights_only=True
        )


def test_a_second_bottleneck_starts_without_a_state(tmp_path):
    class Two(tiny.TinyAutoencoder):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Sequential(LinearBottleneck(tiny.DIM, 2, gain=1.0), nn.Linear(tiny.DIM, tiny.FEATURES))
            self.strict_loading = False

    path = tmp_path / "last.ckpt"
    trainer, before, _ = stage(path, 2, DepthScaledLR(), scheduler="LambdaLR")
    saved = {name: trainer.optimizers[0].state[p]["exp_avg"] for name, p in before.named_parameters()}
    model = attach_linear_bottleneck(Two(), dim=tiny.DIM, depth=4, gain=1.0)
    checkpoint = torch.load(path, weights_only=True)
    names = {name: name.replace("decoder.", "decoder.1.") for name in checkpoint["state_dict"]}
    checkpoint["state_dict"] = {names[name]: value for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)
    _, _, lrs = stage(path, 3, DepthScaledLR(), scheduler="LambdaLR", model=model)
    assert set(lrs.restored) == set(names.values())
    for name, value in saved.items():
        assert torch.equal(lrs.restored[names[name]]["exp_avg"], value)
    assert all(rates == [rates[0], rates[0] / 4, rates[0] / 2] for rates in lrs.steps)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("resumed_from", ["the middle of an epoch", "the end of an epoch"])
def test_resumed_like_a_run_with_explicit_groups(resumed_from, tmp_path):
    """Where in the data a resumed epoch goes on is Lightning's affair; the groups must make no difference."""

    def ends(explicit):
        directory = tmp_path / str(explicit)
        every = {"every_n_train_steps": 6} if "middle" in resumed_from else {"every_n_epochs": 1}
        weights = []
        for crash, ckpt_path in ((Crash(epoch=2), None), (None, directory / "last.ckpt")):
            model = tiny.tiny()
            model.configure_optimizers = lambda model=model: torch.optim.AdamW(
                depth_scaled_param_groups(model, 1e-2) if explicit else model.parameters(), lr=1e-2
            )
            checkpoint = ModelCheckpoint(directory, "last", enable_version_counter=False, **every)
            callbacks = [*([] if explicit else [DepthScaledLR()]), *([crash] if crash else []), checkpoint]
            trainer = tiny.trainer(callbacks=callbacks, max_epochs=4, enable_checkpointing=True)
            with pytest.raises(RuntimeError, match="on purpose") if crash else nullcontext():
                trainer.fit(model, tiny.loader(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
            weights.append(model.state_dict())
        return weights[-1]

    torch.testing.assert_close(ends(explicit=False), ends(explicit=True), rtol=0, atol=0)
