"""What the user wrote about their own param groups goes on meaning the same beside DepthScaledLR."""

import copy
import pickle

import pytest
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, StochasticWeightAveraging
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from lightning_rank import DepthScaledLR, LinearBottleneck, attach_linear_bottleneck


class TwoGroups(tiny.TinyAutoencoder):
    """Encoder and decoder, each with a bottleneck, in groups of their own."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(LinearBottleneck(tiny.DIM, 2, gain=1.0), nn.Linear(tiny.DIM, tiny.FEATURES))

    def optimizer(self):
        groups = [
            {"params": self.encoder.parameters(), "lr": 1e-2, "name": "encoder", "weight_decay": 0.1},
            {"params": self.decoder.parameters(), "lr": 2e-2, "momentum": 0.5},
        ]
        return torch.optim.SGD(groups, lr=1.0, momentum=0.9)

    def configure_optimizers(self):
        return self.optimizer()


def two_groups(cls=TwoGroups):
    torch.manual_seed(0)
    return attach_linear_bottleneck(cls(), dim=tiny.DIM, depth=4, gain=1.0)


def fit(model, *callbacks, **options):
    trainer = tiny.trainer(callbacks=[DepthScaledLR(), *callbacks], **options)
    trainer.fit(model, tiny.loader())
    return trainer


def shown(trainer, *keys):
    return [tuple(group.get(key) for key in keys) for group in trainer.optimizers[0].param_groups]


def test_the_users_groups_keep_places_names_and_options_and_the_linear_ones_name_their_partners():
    trainer = fit(two_groups())
    assert shown(trainer, "name", "lr", "weight_decay", "momentum", "depth_partner", "depth_multiplier") == [
        ("encoder", 1e-2, 0.1, 0.9, None, None),
        ("pg2", 2e-2, 0, 0.5, None, None),
        ("encoder/encoder.linear_bottleneck", 2.5e-3, 0.1, 0.9, 0, 0.25),
        ("pg2/decoder.0", 1e-2, 0, 0.5, 1, 0.5),
    ]
    users = trainer.optimizers[0].param_groups[:2]
    given = two_groups().optimizer().param_groups
    assert [list(group) for group in users] == [[*own] + ["name"] * ("name" not in own) for own in given]


class Setting(Callback):
    """Sets an option of the user's second group, at the third step, and reads it right after the step."""

    def __init__(self, key, value):
        self.key, self.value, self.seen = key, value, []

    def on_fit_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_post_hook(
            lambda optimizer, *_: self.seen.append([group[self.key] for group in optimizer.param_groups])
        )

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 2:
            optimizer.param_groups[1][self.key] = self.value


@pytest.mark.parametrize(("key", "value"), [("weight_decay", 0.3), ("momentum", 0.7), ("nesterov", True)])
def test_an_option_set_by_index_holds_for_the_linear_layers_of_that_group(key, value):
    setting = Setting(key, value)
    fit(two_groups(), setting)
    first, second = two_groups().optimizer().param_groups
    assert setting.seen == [[first[key], second[key]] * 2] * 2 + [[first[key], value] * 2] * 6


class Summing(torch.optim.SGD):
    """Keeps the sum of its learning rates in each group; by its default, though it is no option."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.defaults["sum"] = 0.0
        for group in self.param_groups:
            group["sum"] = 0.0

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["sum"] += group["lr"]
        return loss


def test_state_that_an_optimizer_keeps_in_its_groups_is_not_taken_from_the_partner():
    class Summed(TwoGroups):
        def optimizer(self):
            return Summing(self.parameters(), lr=0.5)

    assert shown(fit(two_groups(Summed)), "sum") == [(4.0,), (1.0,), (2.0,)]


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda step: 0.9**step, lambda step: 0.8**step]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, [lambda step: 0.9, lambda step: 0.8]),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.2], total_steps=9, cycle_momentum=False),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, [1e-3, 2e-3], [1e-2, 3e-2], 2, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, "max", patience=0, min_lr=[5e-3, 6e-3]),
    "SWALR": lambda o: SWALR(o, [1e-3, 3e-3], anneal_epochs=3),
    "CosineAnnealingLR, eta_min": lambda o: lr_scheduler.CosineAnnealingLR(o, 5, eta_min=1e-3),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.LambdaLR(o, [lambda step: 0.9**step] * 2)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.LambdaLR(o, [lambda step: 0.9**step] * 2)]
    ),
}


class Scheduled(TwoGroups):
    """Steps a scheduler by hand that Lightning knows nothing of, and keeps what it and the groups say of it."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.said, self.applied = [], []

    def scheduled_by(self, name, built):
        self.name, self.built = name, built
        self.earlier = self.optimizer()
        self.schedule("earlier", self.earlier)
        return self

    def schedule(self, now, optimizer):
        if now == self.built:
            self.scheduler = SCHEDULERS[self.name](optimizer)

    def configure_optimizers(self):
        self.schedule("in configure_optimizers", self.earlier)
        return self.earlier

    def on_train_start(self):
        self.schedule("later", self.trainer.optimizers[0])
        self.schedule("later, over Lightning's wrapper", self.optimizers())

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()
        self.applied.append([group["lr"] for group in optimizer.param_groups])
        self.scheduler.step(*([0.0] if self.name == "ReduceLROnPlateau" else []))
        self.said.append(self.scheduler.get_last_lr())
        assert self.said[-1] == [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("built", ["earlier", "in configure_optimizers", "later", "later, over Lightning's wrapper"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_with_a_value_for_each_group_of_the_user_may_be_built_at_any_time(name, built):
    alone = two_groups(Scheduled).scheduled_by(name, "earlier")
    tiny.trainer().fit(alone, tiny.loader())
    model = two_groups(Scheduled).scheduled_by(name, built)
    fit(model)
    assert len(model.applied) == 8
    for rates, expected in zip(model.applied, alone.applied, strict=True):
        assert rates == [*expected, expected[0] / 4, expected[1] / 2]
    # What a scheduler says are the learning rates of the next step.
    assert model.said[:-1] == model.applied[1:]


def test_a_list_of_another_length_is_refused_as_ever():
    class Wrong(TwoGroups):
        def on_train_start(self):
            lr_scheduler.LambdaLR(self.trainer.optimizers[0], [lambda step: 1.0] * 3)

    with pytest.raises(ValueError, match="Expected 2 lr_lambdas, but got 3"):
        fit(two_groups(Wrong))


@pytest.mark.parametrize("swa_lrs", [5e-3, [5e-3, 6e-3]])
def test_stochastic_weight_averaging_takes_a_rate_for_each_group_of_the_user(swa_lrs):
    swa = StochasticWeightAveraging(swa_lrs=swa_lrs, swa_epoch_start=2, annealing_epochs=1)
    trainer = fit(two_groups(), swa, max_epochs=5)
    first, second = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs] * 2
    assert [lr for (lr,) in shown(trainer, "lr")] == pytest.approx([first, second, first / 4, second / 2])


class Backbone(tiny.TinyAutoencoder):
    """Its encoder, with the bottleneck, is frozen at first."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(self.encoder, LinearBottleneck(tiny.DIM, 2, gain=1.0))
        del self.encoder

    def forward(self, x):
        return self.decoder(self.backbone(x))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def finetuned(*callbacks):
    finetuning = BackboneFinetuning(2, lambda epoch: 1.5, backbone_initial_lr=1e-4, should_align=False, train_bn=False)
    read = []

    class Read(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            read.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    torch.manual_seed(0)
    tiny.trainer(callbacks=[*callbacks, finetuning, Read()], max_epochs=5).fit(Backbone(), tiny.loader())
    return read


def test_backbone_finetuning_raises_the_rate_of_its_own_group():
    alone, read = finetuned(), finetuned(DepthScaledLR())
    assert [len(groups) for groups in alone] == [1, 1, 2, 2, 2]
    assert read[:2] == alone[:2]
    for groups, expected in zip(read[2:], alone[2:], strict=True):
        assert groups == [*expected, expected[1] / 2]


class Unfreeze(BaseFinetuning):
    """Adds the decoder, with the names of its parameters."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.decoder)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch >= 1:  # also after a resume, which freezes again
            self.make_trainable(pl_module.decoder)
        if epoch == 1:
            optimizer.add_param_group({"params": list(pl_module.decoder.named_parameters()), "lr": 4e-2})
        if epoch == 2:
            assert optimizer.param_groups[-1] is optimizer.param_groups[1]


class Encoder(TwoGroups):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.encoder.named_parameters("encoder"), lr=1e-2)
        return [optimizer], [lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]


def test_a_group_added_later_stands_behind_those_of_the_user_and_is_scheduled():
    trainer = fit(two_groups(Encoder), Unfreeze(), max_epochs=3)
    assert shown(trainer, "name", "lr", "depth_partner") == [
        ("base", 1.25e-3, None),
        ("pg2", 5e-3, None),
        ("encoder.linear_bottleneck", 3.125e-4, 0),
        ("pg2/decoder.0", 2.5e-3, 1),
    ]
    names = {id(parameter): name for name, parameter in trainer.lightning_module.named_parameters()}
    for group in trainer.optimizers[0].param_groups:
        assert [names[id(p)].removeprefix("decoder.") for p in group["params"]] == group["param_names"]


def test_groups_added_before_an_interruption_are_found_again(tmp_path):
    trainer = fit(two_groups(Encoder), Unfreeze(), max_epochs=3)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    expected = fit(two_groups(Encoder), Unfreeze(), max_epochs=5)
    resumed = tiny.trainer(callbacks=[DepthScaledLR(), Unfreeze()], max_epochs=5)
    resumed.fit(two_groups(Encoder), tiny.loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    keys = "lr", "depth_partner", "depth_multiplier", "param_names"
    assert shown(resumed, *keys) == shown(expected, *keys)
    for one, other in zip(resumed.lightning_module.parameters(), expected.lightning_module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_the_partner_survives_a_copy(duplicate):
    class Copy(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.twin = duplicate(trainer.optimizers[0])

    twin = Copy()
    trainer = fit(two_groups(), twin)
    assert [group.get("depth_partner") for group in twin.twin.param_groups] == [None, None, 0, 1]
    twin.twin.load_state_dict(trainer.optimizers[0].state_dict())
    assert [group["lr"] for group in twin.twin.param_groups] == [1e-2, 2e-2, 2.5e-3, 1e-2]
    assert not twin.twin._optimizer_step_pre_hooks
