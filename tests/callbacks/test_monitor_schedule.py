"""When EffectiveRankMonitor measures: validations, training epochs and windows of steps, whatever the loop is like."""

import csv
from functools import partial

import pytest
import reference
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_rank import EffectiveRankMonitor
from lightning_rank.callbacks import _loggers
from lightning_rank.callbacks._due import Due
from lightning_rank.callbacks._keys import Keys


class Stream(IterableDataset):
    """Without an end, and the same each time."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            yield (torch.randn(tiny.FEATURES, generator=generator),)


def still(**options):
    """A model whose weights stay, so that NumPy can say what was to be found."""
    model = tiny.tiny()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
    return model


def effective(model, rows):
    with torch.no_grad():
        return reference.effective_rank(reference.deviations(model.encoder(rows).double().numpy()))


def stream_rows(first, last):
    """Rows of the steps from ``first`` up to ``last``, 8 each."""
    rows = [row for (row,), _ in zip(Stream(), range(8 * last), strict=False)]
    return torch.stack(rows[8 * first :])


def fit(monitor, *callbacks, model=None, train=None, val="default", **options):
    model = model or tiny.tiny()
    trainer = tiny.trainer(callbacks=[monitor, *callbacks], **options)
    val = tiny.loader(24, 8, seed=5) if val == "default" else val
    trainer.fit(model, tiny.loader() if train is None else train, val)
    return trainer, model


@pytest.mark.parametrize("sanity", [0, 2])
def test_validation_data_that_is_not_loaded_yet_is_validation_data(sanity):
    seen = {}

    class Latents(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            seen[trainer.current_epoch] = effective(pl_module, tiny.rows(24, 5))

    monitor = EffectiveRankMonitor()
    fit(monitor, Latents(), max_epochs=4, check_val_every_n_epoch=2, num_sanity_val_steps=sanity)
    assert [(row["epoch"], row["rank/samples"]) for row in monitor.history] == [(1, 24), (3, 24)]
    assert [row["rank/effective"] for row in monitor.history] == pytest.approx([seen[1], seen[3]], rel=1e-6)
    assert not any("train" in key for row in monitor.history for key in row)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_a_loader_that_turns_out_to_be_empty_leaves_the_training_epochs():
    monitor = EffectiveRankMonitor()
    fit(monitor, val=[], max_epochs=3)
    assert [row["rank/train/samples"] for row in monitor.history] == [32, 32, 32]


@pytest.mark.parametrize("n", [1, 2])
def test_validations_are_counted_within_an_epoch_too(n):
    monitor = EffectiveRankMonitor(every_n_epochs=n)
    options = {"max_steps": 18, "max_epochs": -1, "val_check_interval": 3, "check_val_every_n_epoch": None}
    fit(monitor, train=DataLoader(Stream(), 8), **options)
    assert [row["step"] for row in monitor.history] == [2, 5, 8, 11, 14, 17][n - 1 :: n]
    assert all(row["epoch"] == 0 and row["rank/samples"] == 24 for row in monitor.history)


@pytest.mark.parametrize("how", ["checkpoint", "early stopping"])
def test_whoever_watches_a_rank_that_is_measured_now_and_then_has_one_from_the_first_validation_on(how, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="rank/effective", mode="min")
    watcher = checkpoint if how == "checkpoint" else EarlyStopping("rank/effective", patience=9)
    monitor = EffectiveRankMonitor(every_n_epochs=2, every_n_train_steps=2)
    fit(monitor, watcher, max_epochs=4, enable_checkpointing=how == "checkpoint")
    validations = [row for row in monitor.history if "rank/effective" in row]
    assert [row["epoch"] for row in validations] == [0, 1, 3]
    if how == "checkpoint":
        assert checkpoint.best_model_score.item() == pytest.approx(
            min(row["rank/effective"] for row in validations), rel=1e-6
        )


def test_windows_of_training_steps_without_epochs_and_validation(tmp_path):
    monitor = EffectiveRankMonitor(every_n_train_steps=3)
    checkpoint = ModelCheckpoint(
        tmp_path, "{step}", monitor="rank/train/effective", mode="max", every_n_train_steps=3, save_top_k=-1
    )
    trainer, model = fit(
        monitor,
        checkpoint,
        model=still(),
        train=DataLoader(Stream(), 8),
        val=None,
        max_steps=10,
        max_epochs=-1,
        enable_checkpointing=True,
        logger=CSVLogger(tmp_path),
    )
    expected = [effective(model, stream_rows(start, start + 3)) for start in (0, 3, 6)]
    assert [row["step"] for row in monitor.history] == [2, 5, 8]
    assert [row["rank/train/samples"] for row in monitor.history] == [24, 24, 24]
    assert [row["rank/train/effective"] for row in monitor.history] == pytest.approx(expected, rel=1e-6)
    scores = [score.item() for _, score in sorted(checkpoint.best_k_models.items())]
    assert scores == pytest.approx([score for _, score in sorted(zip("369", expected, strict=True))], rel=1e-6)
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        logged = [(int(row["step"]), float(row["rank/train/effective"])) for row in csv.DictReader(file)]
    assert [step for step, _ in logged] == [2, 5, 8], "although Lightning logs every 50 steps only"
    assert [value for _, value in logged] == pytest.approx(expected, rel=1e-6)
    assert trainer.callback_metrics["rank/train/effective"].item() == pytest.approx(expected[-1], rel=1e-6)


def test_windows_go_across_epochs_and_validations_and_these_have_keys_of_their_own():
    class Kept(Callback):
        def on_validation_end(self, trainer, pl_module):
            self.watched = trainer.callback_metrics.get("rank/train/samples")

    monitor, kept = EffectiveRankMonitor(every_n_train_steps=6), Kept()
    _, model = fit(monitor, kept, model=still(), train=tiny.loader(40, 8), max_epochs=3, val_check_interval=2)
    windows = [(row["step"], row["rank/train/samples"]) for row in monitor.history if "rank/train/samples" in row]
    assert windows == [(5, 48), (11, 48)]
    both = torch.cat([tiny.rows(40)[:40], tiny.rows(40)[:8]])
    first = next(row for row in monitor.history if "rank/train/samples" in row)
    assert first["rank/train/effective"] == pytest.approx(effective(model, both), rel=1e-6)
    assert sum("rank/samples" in row for row in monitor.history) == 6
    assert kept.watched == 48, "EarlyStopping sees it at validations"


@pytest.mark.parametrize(
    ("options", "first", "then"),
    [
        ({"val_check_interval": 2}, (1, 16), [(5, 32), (11, 48)]),  # validations come first
        ({"val_check_interval": 5}, (4, 40), [(5, 8), (11, 48)]),
        ({"check_val_every_n_epoch": 4}, (4, 40), [(5, 8), (11, 48)]),  # the end of the epoch does
    ],
)
def test_whoever_watches_the_windows_need_not_wait_for_the_first_to_be_full(options, first, then, tmp_path):
    class Seen(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                self.first = getattr(self, "first", trainer.callback_metrics.get("rank/train/samples"))

    monitor, seen = EffectiveRankMonitor(every_n_train_steps=6), Seen()
    stopping = EarlyStopping(
        "rank/train/effective", patience=99, check_on_train_epoch_end="val_check_interval" not in options
    )
    logger = CSVLogger(tmp_path)
    fit(
        monitor,
        stopping,
        seen,
        train=tiny.loader(40, 8),
        max_epochs=3,
        num_sanity_val_steps=2,
        logger=logger,
        **options,
    )
    windows = [(row["step"], row["rank/train/samples"]) for row in monitor.history if "rank/train/samples" in row]
    assert windows == [first, *then]
    assert getattr(seen, "first", first[1]) == first[1]
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        logged = [
            (int(row["step"]), float(row["rank/train/samples"]))
            for row in csv.DictReader(file)
            if row["rank/train/samples"]
        ]
    assert logged == windows, "once each"


def test_nobody_waits_for_validations_who_watches_windows():
    monitor = EffectiveRankMonitor(["encoder"], every_n_epochs=3, every_n_train_steps=2)
    fit(monitor, EarlyStopping("rank/train/encoder/effective", patience=99), max_epochs=4)
    assert [row["epoch"] for row in monitor.history if "rank/encoder/samples" in row] == [2]


def test_a_layer_called_train_is_not_taken_for_the_split():
    keys = Keys(["train", "test.train"], True, None, "latents")
    found = [keys.split(f"rank/{key}") for key in ("train/effective", "train/train/gap", "test.train/gap", "gap")]
    assert found == ["validate", "train", "validate", None]
    keys = Keys(["encoder"], False, None, "latents")
    asked = ("gap", "gap/dataloader_idx_1", "train/gap", "test/gap/dataloader_idx_0", "b/gap", "train/b/gap", "")
    found = [keys.split(f"rank/{key}") for key in asked]
    assert found == ["validate", "validate", "train", "test", None, None, None], "those of a monitor b are its own"


def test_a_layer_whose_keys_are_those_of_another_monitors_windows_is_refused():
    monitors = [EffectiveRankMonitor(["train"]), EffectiveRankMonitor("encoder", every_n_train_steps=2)]
    with pytest.raises(ValueError, match=r"name: expected keys of its own for each .* got rank/train/\.\.\. in two"):
        fit(*monitors)


def test_a_window_of_accumulated_batches_counts_optimizer_steps():
    monitor = EffectiveRankMonitor(every_n_train_steps=2)
    fit(monitor, val=None, max_epochs=2, accumulate_grad_batches=2)
    assert [(row["step"], row["rank/train/samples"]) for row in monitor.history] == [(1, 32), (3, 32)]


class TwoOptimizers(tiny.TinyAutoencoder):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(tiny.FEATURES, 1)

    def training_step(self, batch, batch_idx):
        losses = (self(batch[0]) - batch[0]).square().mean(), self.critic(batch[0]).square().mean()
        for optimizer, loss in zip(self.optimizers(), losses, strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(module.parameters()) for module in (self.encoder, self.critic)]


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
def test_two_optimizers_count_as_they_do_for_checkpoints_and_loggers_have_one_axis(tmp_path):
    monitor = EffectiveRankMonitor("encoder", every_n_train_steps=4)
    checkpoint = ModelCheckpoint(tmp_path, monitor="rank/train/effective", every_n_train_steps=4)
    logger = CSVLogger(tmp_path)
    fit(
        monitor, checkpoint, model=TwoOptimizers(), max_epochs=2, enable_checkpointing=True, logger=logger
    )  # two batches make four steps
    assert [row["step"] for row in monitor.history if "rank/train/samples" in row] == [1, 3, 5, 7]
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        logged = [(int(row["step"]), row["rank/effective"]) for row in csv.DictReader(file)]
    assert [step for step, value in logged if value] == [3, 7]
    assert [row["step"] for row in monitor.history if "rank/samples" in row] == [3, 7]


class Stop(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 7:
            raise RuntimeError("on purpose")


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("window", [None, 4])
def test_resumed_in_the_middle_of_an_epoch_or_a_window_it_is_measured_from_there(window, tmp_path):
    def run(*callbacks, **options):
        monitor = EffectiveRankMonitor(stage="train", every_n_train_steps=window)
        every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1, enable_version_counter=False)
        trainer = tiny.trainer(callbacks=[*callbacks, monitor, every], max_epochs=3, enable_checkpointing=True)
        trainer.fit(tiny.tiny(), tiny.loader(), **options)
        return [(row["epoch"], row["step"], row["rank/train/samples"]) for row in monitor.history]

    unbroken = run()
    assert unbroken == [(0, 3, 32), (1, 7, 32), (2, 11, 32)]
    with pytest.raises(RuntimeError, match="on purpose"):
        run(Stop())
    resumed = run(ckpt_path=tmp_path / "step=6.ckpt", weights_only=True)
    assert resumed == [(0, 3, 32), (1, 7, 16), (2, 11, 32)], "of the second epoch what came after the resumption"


def test_windows_in_two_processes(tmp_path):
    class Keep(Callback):
        def on_fit_end(self, trainer, pl_module):
            torch.save(monitor.history, tmp_path / str(trainer.global_rank))

    monitor = EffectiveRankMonitor(every_n_train_steps=2)
    trainer, _ = fit(
        monitor, Keep(), model=still(), train=tiny.loader(29, 4), val=None, max_epochs=1, devices=2, strategy="ddp_fork"
    )
    histories = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    assert histories[0] == histories[1] == monitor.history, "of the process that launched them as well"
    assert [row["rank/train/samples"] for row in monitor.history] == [16, 13], "without the sample that fills up"
    torch.testing.assert_close(
        trainer.callback_metrics["rank/train/samples"], torch.tensor(13.0), check_dtype=False, check_device=False
    )


@pytest.mark.parametrize(
    ("monitor", "options"),
    [
        (lambda: EffectiveRankMonitor(every_n_epochs=5), {}),
        (lambda: EffectiveRankMonitor(), {"check_val_every_n_epoch": 9}),
        (lambda: EffectiveRankMonitor(stage="train", every_n_train_steps=100), {}),
    ],
)
def test_a_training_in_which_nothing_was_due_says_so(monitor, options):
    with pytest.warns(UserWarning, match=r"nothing was measured in this training: .*every_n_epochs=\d.*every_n_train"):
        fit(monitor(), max_epochs=2, num_sanity_val_steps=0, **options)


def test_a_layer_that_is_called_in_training_only_is_said_with_what_to_do():
    class OnlyTraining(tiny.TinyAutoencoder):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(tiny.DIM, 2)

        def training_step(self, batch, batch_idx):
            return self.head(self.encoder(batch[0])).square().mean()

        def validation_step(self, batch, batch_idx):
            self.encoder(batch[0])

    with pytest.warns(
        UserWarning, match=r"'head' was not called in any validation_step.*stage='train'.*before="
    ) as told:
        fit(EffectiveRankMonitor(["encoder", "head"]), model=OnlyTraining(), max_epochs=3)
    assert sum("was not called" in str(warning.message) for warning in told) == 1


def test_pictures_pay_for_themselves():
    now = [0.0]
    due = Due("auto", clock=lambda: now[0])
    drawn = []
    for _ in range(1000):
        now[0] += 1.0  # between validations
        if due.now():
            with due.drawing():
                now[0] += 4.0
            drawn.append(now[0])
    assert 4 * len(drawn) <= 0.05 * now[0]
    assert len(drawn) >= 10
    assert drawn[0] == 24.0, "the first ones are reckoned to take a second"


def test_pictures_of_validations_within_an_epoch_are_few_however_many_these_are(monkeypatch, tmp_path):
    now, drawn = [0.0], []
    monkeypatch.setattr("lightning_rank.callbacks._report.Due", partial(Due, clock=lambda: now[0]))

    class Passes(Callback):
        def on_validation_start(self, trainer, pl_module):
            now[0] += 1.0

    class Pictures(CSVLogger):
        def log_figure(self, key, figure, step):
            now[0] += 0.25
            drawn.append((key, step))

    class Takes(_loggers._Comet):
        def figure(self, logger, key, figure, step):
            logger.log_figure(key, figure, step)

        def histogram(self, *args):
            pass

    monkeypatch.setitem(_loggers._KINDS, "Pictures", Takes())
    monitor = EffectiveRankMonitor("encoder")
    options = {"val_check_interval": 1, "num_sanity_val_steps": 0, "logger": Pictures(tmp_path)}
    fit(Passes(), monitor, train=tiny.loader(800, 8), model=tiny.TinyAutoencoder(), max_epochs=1, **options)
    assert len(monitor.history) == 100
    assert {key for key, _ in drawn} == {"rank/spectrum", "rank/waterfall"}
    steps = [step for key, step in drawn if key == "rank/spectrum"]
    # After twenty seconds, as the first are reckoned to take one; then every ten, as they take half a second; the last.
    assert steps == [19, 29, 39, 49, 59, 69, 79, 89, 99]
    assert 0.25 * len(drawn) <= 0.05 * now[0]


@pytest.mark.parametrize(("at_once", "expected"), [(True, [0, 3, 6, 9]), (False, [2, 5, 8])])
def test_pictures_are_counted_from_the_last(at_once, expected):
    due, drawn = Due(3, at_once), []
    for occasion in range(10):
        if due.now():
            with due.drawing():
                drawn.append(occasion)
    assert drawn == expected
    assert not Due(None).now()


def test_every_second_training_epoch_beside_whoever_waits_for_each():
    monitor = EffectiveRankMonitor("encoder", stage="train", every_n_epochs=2)
    stopping = EarlyStopping("rank/train/effective", check_on_train_epoch_end=True, patience=9)
    tiny.trainer(callbacks=[monitor, stopping], max_epochs=4).fit(tiny.TinyAutoencoder(), tiny.loader())
    assert [row["epoch"] for row in monitor.history] == [0, 1, 3]


def test_a_scheduler_that_waits_for_the_rank():
    class Plateau(tiny.TinyAutoencoder):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 1e-2)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "rank/effective"}}

    monitor = EffectiveRankMonitor("encoder", every_n_epochs=2)
    tiny.trainer(callbacks=[monitor], max_epochs=4).fit(Plateau(), tiny.loader(), tiny.loader(20, 10))
    assert [row["epoch"] for row in monitor.history] == [0, 1, 3]
