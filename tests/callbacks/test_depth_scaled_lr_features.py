"""DepthScaledLR beside everything else that touches optimizers: the ratio holds at every step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    LearningRateFinder,
    LearningRateMonitor,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import lr_scheduler

from lightning_rank import DepthScaledLR, EffectiveRankMonitor, LinearBottleneck, attach_linear_bottleneck
from lightning_rank.optim import linear_groups


class Ratios(Callback):
    """Reads, at each step of each optimizer, the ratio of every linear group to the group that it was split from.

    It reads just after the step, so what the step used; and it finds the groups by their parameters, not by what the
    callback under test wrote into them.
    """

    def __init__(self):
        self.ratios, self.optimizers = [], []

    def watch(self, pl_module, optimizers):
        owners = {id(p): group for group in linear_groups(pl_module) for p in group.params}

        def read(optimizer, args, kwargs):
            base = None
            if optimizer.param_groups[0]["lr"] == 0:
                return  # the step with which FSDP2 makes room for the state that it loads
            for group in optimizer.param_groups:
                kinds = {owners.get(id(p)) is None for p in group["params"]}
                assert len(kinds) <= 1, "linear and other parameters are never in one group"
                if kinds == {False}:
                    owner = owners[id(group["params"][0])]
                    self.ratios.append(float(group["lr"]) / float(base["lr"]) / owner.multiplier)
                else:
                    base = group

        for optimizer in optimizers:
            if all(optimizer is not known for known in self.optimizers):
                self.optimizers.append(optimizer)
                optimizer.register_step_post_hook(read)

    def on_fit_start(self, trainer, pl_module):
        self.watch(pl_module, trainer.optimizers)

    def check(self, steps):
        assert self.ratios == [1.0] * steps


class WithLR(tiny.TinyAutoencoder):
    def __init__(self, lr: float = 1e-2):
        super().__init__()
        self.lr = lr

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return [optimizer], [
            {"scheduler": lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=500), "interval": "step"}
        ]


def attached(model=None, depth=4):
    torch.manual_seed(0)
    return attach_linear_bottleneck(model or WithLR(), dim=tiny.DIM, depth=depth, gain=1.0)


def fit(model, *callbacks, **options):
    ratios = Ratios()
    trainer = tiny.trainer(callbacks=[*callbacks, ratios], **options)
    trainer.fit(model, tiny.loader())
    return ratios


@pytest.mark.parametrize("scheduled", [True, False])
def test_the_learning_rate_finder_as_a_callback(scheduled, tmp_path):
    model = attached(WithLR() if scheduled else LearningRateOnly())
    finder = LearningRateFinder(num_training_steps=20, min_lr=1e-5, max_lr=1e-1)
    ratios = fit(model, DepthScaledLR(), finder, default_root_dir=tmp_path)
    assert len(ratios.ratios) >= 8
    ratios.check(len(ratios.ratios))


class LearningRateOnly(WithLR):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def test_the_learning_rate_finder_sweeps_with_the_ratio_held_and_a_fit_follows(tmp_path):
    class Watched(LearningRateOnly):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            ratios.watch(self, [optimizer])
            return optimizer

    # The finder takes the trainer's callbacks away while it sweeps, so the model itself has to watch.
    ratios, model = Ratios(), attached(Watched())
    trainer = tiny.trainer(callbacks=[DepthScaledLR()], default_root_dir=tmp_path)
    tuner = Tuner(trainer)
    found = tuner.lr_find(model, tiny.loader(400), num_training=30, min_lr=1e-6, max_lr=1.0, update_attr=True)
    ratios.check(30)
    assert model.lr == found.suggestion() != 1e-2
    trainer.fit(model, tiny.loader())
    ratios.check(38)


def test_stochastic_weight_averaging():
    swa = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=2, annealing_epochs=2)
    fit(attached(LearningRateOnly()), DepthScaledLR(), swa, max_epochs=6).check(24)


@pytest.mark.parametrize("first", [True, False])
def test_weight_averaging(first):
    callbacks = [DepthScaledLR(), WeightAveraging()] if first else [WeightAveraging(), DepthScaledLR()]
    fit(attached(), *callbacks).check(8)


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze([pl_module.encoder.linear_bottleneck, pl_module.decoder])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group([pl_module.encoder.linear_bottleneck, pl_module.decoder], optimizer)


class OnlyTrainable(LearningRateOnly):
    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


@pytest.mark.parametrize("first", [True, False])
def test_a_bottleneck_that_is_unfrozen_later(first):
    model = attached(OnlyTrainable())
    callbacks = [DepthScaledLR(), Unfreeze()] if first else [Unfreeze(), DepthScaledLR()]
    ratios = Ratios()
    trainer = tiny.trainer(callbacks=[*callbacks, ratios], max_epochs=3)
    trainer.fit(model, tiny.loader())
    ratios.check(8)  # the two epochs after it was unfrozen
    names = [(group["name"], len(group["params"])) for group in trainer.optimizers[0].param_groups]
    assert names == [("pg1", 2), ("pg2", 2), ("pg2/encoder.linear_bottleneck", 4)]


def test_unfreezing_later_survives_resume(tmp_path):
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), Unfreeze(), Ratios()], max_epochs=2)
    trainer.fit(attached(OnlyTrainable()), tiny.loader())
    trainer.save_checkpoint(tmp_path / "unfrozen.ckpt", weights_only=False)
    ratios = Ratios()
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), Unfreeze(), ratios], max_epochs=4)
    trainer.fit(attached(OnlyTrainable()), tiny.loader(), ckpt_path=tmp_path / "unfrozen.ckpt", weights_only=False)
    ratios.check(8)


def test_backbone_finetuning():
    class Backbone(LearningRateOnly):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(self.encoder, LinearBottleneck(tiny.DIM, 2, gain=1.0))
            del self.encoder

        def forward(self, x):
            return self.decoder(self.backbone(x))

        def configure_optimizers(self):
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)

    fit(Backbone(), DepthScaledLR(), BackboneFinetuning(unfreeze_backbone_at_epoch=1), max_epochs=3).check(8)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2, "max_epochs": 4},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"detect_anomaly": True},
    ],
    ids=str,
)
def test_trainer_options(options):
    fit(attached(), DepthScaledLR(), **options).check(8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 autocast with a gradient scaler wants a GPU")
def test_float16_with_a_gradient_scaler():
    ratios = fit(attached(), DepthScaledLR(), precision="16-mixed", accelerator="gpu")
    assert ratios.ratios
    ratios.check(len(ratios.ratios))


def test_manual_optimization_with_several_optimizers():
    class Manual(tiny.TinyAutoencoder):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            linear = list(self.encoder.linear_bottleneck.parameters())
            first = torch.optim.Adam([self.encoder.weight, self.encoder.bias, *linear[:2]], lr=1e-2)
            second = torch.optim.SGD([*self.decoder.parameters(), *linear[2:]], lr=1e-1)
            return [first, second], [
                lr_scheduler.StepLR(first, 1),
                lr_scheduler.CosineAnnealingLR(second, 3, eta_min=1e-3),
            ]

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            for scheduler in self.lr_schedulers():
                scheduler.step()

    fit(attached(Manual()), DepthScaledLR()).check(16)


FORMS = {
    "an optimizer": lambda o, s: o,
    "a list": lambda o, s: [o],
    "a tuple": lambda o, s: (o,),
    "two lists": lambda o, s: ([o], [s]),
    "a dict": lambda o, s: {"optimizer": o},
    "a dict with a scheduler": lambda o, s: {"optimizer": o, "lr_scheduler": s},
    "a dict with a dict": lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step"}},
    "a list of dicts": lambda o, s: [{"optimizer": o, "lr_scheduler": s}],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_configure_optimizers_may_return(form):
    class Form(WithLR):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
            return FORMS[form](optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 3, eta_min=1e-3))

    fit(attached(Form()), DepthScaledLR()).check(8)


def test_an_optimizer_that_was_built_earlier_and_serves_two_fits():
    class Early(tiny.TinyAutoencoder):
        def configure_optimizers(self):
            return [self.optimizer], [self.scheduler]

    model = attached(Early())
    model.optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # One entry for each of the user's groups fits here, as nothing was split when the scheduler counted them.
    model.scheduler = lr_scheduler.LambdaLR(model.optimizer, [lambda step: 0.9**step])
    fit(model, DepthScaledLR()).check(8)
    fit(model, DepthScaledLR()).check(8)
    assert [group["name"] for group in model.optimizer.param_groups] == ["base", "encoder.linear_bottleneck"]


def test_no_optimizer_at_all():
    class Without(tiny.TinyAutoencoder):
        def configure_optimizers(self):
            return None

    with pytest.warns(UserWarning, match="this fit will run with no optimizer"):
        tiny.trainer(callbacks=[DepthScaledLR()], max_epochs=1).fit(attached(Without()), tiny.loader())


@pytest.mark.parametrize("first", [True, False])
def test_the_learning_rate_monitor_shows_the_ratio(first, tmp_path):
    monitor, ours = LearningRateMonitor("step"), DepthScaledLR()
    callbacks = [ours, monitor] if first else [monitor, ours]
    fit(attached(), *callbacks, logger=CSVLogger(tmp_path), log_every_n_steps=1).check(8)
    lines = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    base, linear = header.index("lr-Adam/base"), header.index("lr-Adam/encoder.linear_bottleneck")
    rows = [line.split(",") for line in lines[1:]]
    assert len(rows) == 8
    assert all(float(row[linear]) == float(row[base]) / 4 for row in rows)


def test_every_group_has_a_name_of_its_own(tmp_path):
    class Named(tiny.TinyAutoencoder):
        def __init__(self):
            super().__init__()
            self.base = LinearBottleneck(tiny.DIM, 4)

        def forward(self, x):
            return self.decoder(self.base(self.encoder(x)))

    model, monitor = Named(), LearningRateMonitor()
    fit(model, DepthScaledLR(), monitor, logger=CSVLogger(tmp_path))
    assert [group["name"] for group in model.trainer.optimizers[0].param_groups] == ["base", "base/base"]
    assert monitor.lrs.keys() == {"lr-Adam/base", "lr-Adam/base/base"}


def test_fit_twice_with_the_same_callback_and_two_trainers_one_after_the_other():
    callback = DepthScaledLR()
    model = attached()
    fit(model, callback).check(8)
    fit(model, callback).check(8)
    fit(attached(depth=8), callback).check(8)
    fit(attached(), DepthScaledLR()).check(8)


def test_several_bottlenecks_each_have_their_own_multiplier():
    class Two(WithLR):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Linear(tiny.FEATURES, tiny.DIM), LinearBottleneck(tiny.DIM, 3), LinearBottleneck(tiny.DIM, 1)
            )

    ratios = Ratios()
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), ratios])
    trainer.fit(attached(Two(), depth=8), tiny.loader())
    assert ratios.ratios == pytest.approx([1.0] * 24)
    shown = [(group["name"], group.get("depth_multiplier")) for group in trainer.optimizers[0].param_groups]
    assert shown == [("base", None), ("encoder.1", 1 / 3), ("encoder.2", 1), ("encoder.linear_bottleneck", 1 / 8)]


def test_a_layer_shared_with_another_module_trains_as_a_linear_layer():
    model = attached(LearningRateOnly())
    model.shared = nn.Linear(tiny.DIM, tiny.DIM, bias=False)
    model.shared.weight = model.encoder.linear_bottleneck.layers[0].weight
    fit(model, DepthScaledLR()).check(8)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own
@pytest.mark.parametrize("what", ["encoder", "encoder.linear_bottleneck"])
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_submodules(what, how):
    model = attached()
    if how == "in place":
        model.get_submodule(what).compile(backend="eager")
    else:
        parent, _, last = what.rpartition(".")
        setattr(model.get_submodule(parent), last, torch.compile(model.get_submodule(what), backend="eager"))
    fit(model, DepthScaledLR()).check(8)


def test_beside_the_monitor_and_validation():
    ratios = Ratios()
    trainer = tiny.trainer(callbacks=[EffectiveRankMonitor(), DepthScaledLR(), ratios])
    trainer.fit(attached(), tiny.loader(), tiny.loader(20, 10))
    ratios.check(8)


@pytest.mark.slow
def test_fsdp2_in_two_processes_resumed_keeps_the_ratio_and_agrees_with_one(tmp_path):
    program = Path(__file__).with_name("fsdp2_program.py")
    start = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    paths = os.pathsep.join(map(str, program.parents[:3]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run([*start, str(program), str(tmp_path)], env=environment, check=True, timeout=200, capture_output=True)
    # The two batches of 8, one in each process, are the batch of 16 that one process sees.
    torch.manual_seed(0)
    alone, ratios = attached(LearningRateOnly()), Ratios()
    monitor = EffectiveRankMonitor()
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), monitor, ratios], max_epochs=4)
    trainer.fit(alone, tiny.loader(16, 16), tiny.loader(21, 8, seed=2))
    ratios.check(4)
    for process in ("0", "1"):
        weights, theirs, history = torch.load(tmp_path / process)
        assert theirs == ratios.ratios
        torch.testing.assert_close(weights, dict(alone.named_parameters()), check_device=False)
        assert history[-1] == pytest.approx(monitor.history[-1], rel=1e-4)


def test_flattened_parameters_are_refused_with_the_way_out():
    model = attached()
    for layer in model.encoder.linear_bottleneck.layers:
        # What FSDP with use_orig_params=False leaves: a view of the flat parameter where the parameter was.
        weight = layer.weight.detach().clone()
        del layer.weight
        layer.weight = weight
    with pytest.raises(
        MisconfigurationException, match=r"'encoder.linear_bottleneck' have no parameters .*use_orig_params=True"
    ):
        fit(model, DepthScaledLR())


def test_deepspeed_is_refused_with_the_way_out():
    class DeepSpeedStrategy(SingleDeviceStrategy):
        """Only the name."""

    with pytest.raises(
        MisconfigurationException, match=r"DeepSpeed builds its own optimizer .* depth_scaled_param_groups"
    ):
        fit(attached(), DepthScaledLR(), strategy=DeepSpeedStrategy("cpu"))


class ForCLI(tiny.TinyMixedIn):
    def __init__(self, depth: int = 4):
        super().__init__(depth=depth)

    def train_dataloader(self):
        return tiny.loader()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LightningCLI's own use of jsonargparse
@pytest.mark.filterwarnings("ignore:.*will be overridden by `LightningCLI.configure_optimizers`")  # as it should
def test_lightning_cli_with_its_own_configure_optimizers(monkeypatch, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        """
optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9}}
lr_scheduler: {class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 5, eta_min: 0.01}}
model: {depth: 8}
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_rank.DepthScaledLR
      init_args: {multiplier: inverse_depth}
    - class_path: lightning_rank.EffectiveRankMonitor
      init_args: {layer: linear_bottleneck, variance_rtol: 0.01}
"""
    )
    monkeypatch.setattr(sys, "argv", ["trainer", "--config", str(config)])
    cli = LightningCLI(ForCLI, run=False, save_config_callback=None, seed_everything_default=False)
    assert "configure_optimizers" in vars(cli.model), "the CLI installs its own"
    own = vars(cli.model)["configure_optimizers"]
    ratios = Ratios()
    cli.trainer.callbacks.append(ratios)
    cli.trainer.fit(cli.model)
    ratios.check(8)
    assert [group["name"] for group in cli.trainer.optimizers[0].param_groups] == ["base", "encoder.linear_bottleneck"]
    assert vars(cli.model)["configure_optimizers"] is own
    cli.trainer.fit_loop.max_epochs = 4
    cli.trainer.fit(cli.model)
    ratios.check(16)


def test_a_trainer_of_the_other_package():
    pytorch_lightning = pytest.importorskip("pytorch_lightning")

    class Other(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(tiny.FEATURES, tiny.DIM), nn.Linear(tiny.DIM, tiny.FEATURES)

        def training_step(self, batch, batch_idx):
            return (self.decoder(self.encoder(batch[0])) - batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    model = attach_linear_bottleneck(Other(), dim=tiny.DIM, depth=4)
    ratios, monitor = Ratios(), EffectiveRankMonitor()
    trainer = pytorch_lightning.Trainer(
        callbacks=[DepthScaledLR(), monitor, ratios],
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, tiny.loader())
    ratios.check(8)
    assert [row["rank/train/samples"] for row in monitor.history] == [32, 32]
