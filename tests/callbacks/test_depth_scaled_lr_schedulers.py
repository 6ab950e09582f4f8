"""Schedulers see the groups of the user's, whatever they keep of them, and the linear groups follow."""

import pytest
import tiny
import torch
from displacement import Displacement
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR

from lightning_rank import DepthScaledLR, attach_linear_bottleneck


class Scheduled(tiny.TinyAutoencoder):
    def optimizer(self):
        return SGD(self.parameters(), lr=1e-2)

    def scheduler(self, optimizer):
        return LambdaLR(optimizer, lambda step: 0.9**step)

    def configure_optimizers(self):
        optimizer = self.optimizer()
        self.held = self.scheduler(optimizer)
        return [optimizer], [{"scheduler": self.held, "interval": "step"}]


def fit(cls, *callbacks, **options):
    torch.manual_seed(0)
    model, displacement = attach_linear_bottleneck(cls(), dim=tiny.DIM, depth=4, gain=1.0), Displacement()
    trainer = tiny.trainer(callbacks=[*callbacks, displacement], **options)
    trainer.fit(model, tiny.loader())
    return trainer, displacement.steps


class Floors(LRScheduler):
    """It has a list of its own, with a floor for each group."""

    def __init__(self, optimizer, floors):
        self.floors = floors
        super().__init__(optimizer)

    def get_lr(self):
        pairs = zip(self.base_lrs, self.floors, strict=True)
        return [floor + (base - floor) * 0.9**self.last_epoch for base, floor in pairs]


class WithFloors(Scheduled):
    def scheduler(self, optimizer):
        return Floors(optimizer, [1e-3])


class WithLowerBase(Scheduled):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.lr_schedulers().base_lrs = [5e-3]


class GoingBack(Scheduled):
    def on_train_epoch_start(self):
        if self.current_epoch == 0:
            saved = LambdaLR(SGD(self.parameters(), lr=1e-2), lambda step: 1.0)
            self.saved = saved.state_dict()
        else:
            self.lr_schedulers().load_state_dict(self.saved)


class Around(Optimizer):
    """Its groups are those of the optimizer inside, in a list of its own."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner

    def step(self, closure=None):
        return self.inner.step(closure)


class OverTheInnerOne(Scheduled):
    """Steps the scheduler itself, since Lightning takes those of its optimizers only."""

    def optimizer(self):
        return Around(super().optimizer())

    def configure_optimizers(self):
        return super().configure_optimizers()[0]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.held.step()

    def scheduler(self, optimizer):
        return LambdaLR(optimizer.inner, [lambda step: 0.9**step])


class OneCycle(OverTheInnerOne):
    def scheduler(self, optimizer):
        return OneCycleLR(optimizer.inner, [0.1], total_steps=20, cycle_momentum=False)


class Cyclic(OverTheInnerOne):
    def scheduler(self, optimizer):
        return CyclicLR(optimizer.inner, [0.01], [0.1], cycle_momentum=False)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("cls", [WithFloors, WithLowerBase, GoingBack, OverTheInnerOne, OneCycle, Cyclic])
def test_what_a_scheduler_keeps_for_each_group_of_the_user_holds(cls):
    trainer, steps = fit(cls, DepthScaledLR())
    alone, expected = fit(cls)
    torch.testing.assert_close([base for base, _ in steps], [base for base, _ in expected], rtol=1e-3, atol=0)
    torch.testing.assert_close([linear for _, linear in steps], [base / 4 for base, _ in steps], rtol=1e-3, atol=0)
    (lr,) = alone.lightning_module.held.get_last_lr()
    assert trainer.lightning_module.held.get_last_lr() == pytest.approx([lr, lr / 4])


class TwoGroups(Scheduled):
    def optimizer(self):
        return SGD(
            [{"params": self.encoder.parameters(), "lr": 1e-2}, {"params": self.decoder.parameters(), "lr": 2e-2}]
        )

    def configure_optimizers(self):
        return self.optimizer()


class ThenScheduled(TwoGroups):
    configure_optimizers = Scheduled.configure_optimizers

    def scheduler(self, optimizer):
        return LambdaLR(optimizer, [lambda step: 1.0, lambda step: 1.0])


def test_a_checkpoint_of_0_1_without_a_scheduler_resumes_with_one(tmp_path):
    path = tmp_path / "split.ckpt"
    trainer = tiny.trainer(callbacks=[DepthScaledLR()], max_epochs=1)
    trainer.fit(attach_linear_bottleneck(TwoGroups(), dim=tiny.DIM, depth=4, gain=1.0), tiny.loader())
    trainer.save_checkpoint(path, weights_only=False)
    checkpoint = torch.load(path, weights_only=True)
    encoder, decoder, linear = checkpoint["optimizer_states"][0]["param_groups"]
    assert linear.pop("depth_partner") == 0
    checkpoint["optimizer_states"][0]["param_groups"] = [encoder, linear, decoder]
    torch.save(checkpoint, path)
    model = attach_linear_bottleneck(ThenScheduled(), dim=tiny.DIM, depth=4, gain=1.0)
    trainer = tiny.trainer(callbacks=[DepthScaledLR()], max_epochs=2)
    trainer.fit(model, tiny.loader(), ckpt_path=path, weights_only=True)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [1e-2, 2e-2, 2.5e-3]
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs == [1e-2, 2e-2]


class ByHand:
    """A scheduler of no class of torch's."""

    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0

    def step(self):
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + self.steps)

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


class HandScheduled(Scheduled):
    def scheduler(self, optimizer):
        return ByHand(optimizer)

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()


class EachGroup(ByHand):
    """Has a value for each group, and complains if there are others, in whichever of its methods."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.values = [group["lr"] for group in optimizer.param_groups]

    def step(self):
        self.step_update(self.steps + 1)

    def step_update(self, steps):
        self.steps = steps
        for group, value in zip(self.optimizer.param_groups, self.values, strict=True):
            group["lr"] = value * 0.9**steps

    def state_dict(self):
        return {key: value for key, value in vars(self).items() if key != "optimizer"}


class OfEachGroup(HandScheduled):
    def scheduler(self, optimizer):
        return EachGroup(optimizer)


class OfEachGroupByAnotherName(OfEachGroup):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step_update(scheduler.steps + 1)


class DefinedLate(Scheduled):
    def scheduler(self, optimizer):
        class Late(LambdaLR):
            def step(self, *args):
                assert len(self.optimizer.param_groups) == 1
                super().step(*args)

        return Late(optimizer, lambda step: 0.9**step)


@pytest.mark.parametrize("cls", [OfEachGroup, OfEachGroupByAnotherName, DefinedLate])
def test_schedulers_of_whatever_class_see_the_groups_of_the_user(cls):
    trainer, steps = fit(cls, DepthScaledLR())
    expected = [(1e-2 * 0.9**step, 2.5e-3 * 0.9**step) for step in range(8)]
    torch.testing.assert_close(steps, expected, rtol=1e-3, atol=0)
    if cls is not DefinedLate:
        assert trainer.lightning_module.held.state_dict() == {"steps": 8, "values": [1e-2]}


def test_afterwards_the_classes_of_schedulers_are_as_they_were():
    before = [dict(vars(cls)) for cls in (EachGroup, ByHand, LRScheduler, LambdaLR)]
    fit(OfEachGroup, DepthScaledLR())
    assert [dict(vars(cls)) for cls in (EachGroup, ByHand, LRScheduler, LambdaLR)] == before


def test_a_monitor_that_comes_first_shows_what_is_applied_after_a_scheduler_of_the_users_own(tmp_path):
    logger = CSVLogger(tmp_path)
    _, steps = fit(HandScheduled, LearningRateMonitor("step"), DepthScaledLR(), logger=logger, log_every_n_steps=1)
    header, *rows = [
        line.split(",") for line in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    ]
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    rates = [(float(row["lr-SGD/base"]), float(row["lr-SGD/encoder.linear_bottleneck"])) for row in shown]
    assert rates == [pytest.approx((1e-2 / (1 + step), 2.5e-3 / (1 + step))) for step in range(8)]
    torch.testing.assert_close(steps, rates, rtol=1e-3, atol=0)
