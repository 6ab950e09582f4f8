"""EffectiveRankMonitor and LatentTraversal in several processes that do not have the same."""

import functools

import pytest
import reference
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from lightning_rank import EffectiveRankMonitor, LatentTraversal


class Keep(Callback):
    def __init__(self, directory, monitor):
        self.directory, self.monitor = directory, monitor

    def on_fit_end(self, trainer, pl_module):
        state = self.monitor.history, self.monitor.singular_values, dict(trainer.callback_metrics)
        torch.save(state, self.directory / str(trainer.global_rank))


def fit(directory, val, *, processes=2, layers="encoder", callbacks=(), model=None, **options):
    """What each process found, and the encoder's weights, which stay."""
    torch.manual_seed(0)
    model = model or tiny.TinyAutoencoder()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = EffectiveRankMonitor(layers)
    trainer = tiny.trainer(
        callbacks=[monitor, *callbacks, Keep(directory, monitor)],
        max_epochs=1,
        devices=processes,
        strategy="ddp_fork",
        **options,
    )
    trainer.fit(model, tiny.loader(6 * processes, 2), val)
    return model, [torch.load(directory / str(rank)) for rank in range(processes)]


def expected(model, rows):
    with torch.no_grad():
        return torch.tensor(reference.deviations(model.encoder(rows).double().numpy()))


class OwnBatches(BatchSampler):
    pass


LOADERS = {
    "batch sampler": lambda data: DataLoader(data, batch_sampler=OwnBatches(SequentialSampler(data), 4, False)),
    "sampler of batches": lambda data: DataLoader(
        data, batch_size=None, sampler=BatchSampler(SequentialSampler(data), 5, False)
    ),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_samples_that_fill_up_do_not_count_whoever_makes_the_batches(kind, tmp_path):
    rows = tiny.rows(13, seed=2)
    model, found = fit(tmp_path, LOADERS[kind](TensorDataset(rows)))
    for history, spectra, _ in found:
        assert history[0]["rank/samples"] == 13
        torch.testing.assert_close(spectra["encoder"], expected(model, rows), rtol=1e-5, atol=1e-7)
    assert found[0][0] == found[1][0]


class Shards(IterableDataset):
    """As many rows as each process is given, of which it alone knows."""

    def __init__(self, counts):
        self.counts = counts

    def rows(self, rank):
        return tiny.rows(self.counts[rank], seed=100 + rank)

    def __iter__(self):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return iter([(row,) for row in self.rows(rank)])


@pytest.mark.parametrize("counts", [(12, 5), (12, 0), (0, 12), (7, 0, 9)])
def test_processes_with_as_many_rows_as_they_have_and_with_none(counts, tmp_path):
    data = Shards(counts)
    traversal = LatentTraversal("encoder", image_shape=(1, 2, 5), every_n_epochs=1)
    model, found = fit(
        tmp_path,
        DataLoader(data, 4),
        processes=len(counts),
        callbacks=[traversal],
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    rows = torch.cat([data.rows(rank) for rank in range(len(counts))])
    for history, spectra, metrics in found:
        assert history == found[0][0]
        assert history[0]["rank/samples"] == metrics["rank/samples"].item() == sum(counts)
        torch.testing.assert_close(spectra["encoder"], expected(model, rows), rtol=1e-6, atol=1e-9)
        assert torch.equal(spectra["encoder"], found[0][1]["encoder"]), "the same bits"
    assert len(list(tmp_path.rglob("*.png"))) == 1


@pytest.mark.filterwarnings("ignore:.*was not called in any validation_step")
def test_no_process_with_any_rows_ends_the_training_of_none(tmp_path):
    _, found = fit(tmp_path, DataLoader(Shards((0, 0)), 4), num_sanity_val_steps=0)
    assert [history for history, _, _ in found] == [[], []]


class Collectives(Callback):
    """Counts what crosses processes at the end of a validation, however it does."""

    names = ("all_gather", "all_gather_into_tensor", "all_reduce", "broadcast", "broadcast_object_list", "gather")

    def __init__(self, directory):
        self.directory, self.calls = directory, []

    def on_validation_end(self, trainer, pl_module):
        torch.save(self.calls, self.directory / f"calls{trainer.global_rank}")

    def on_validation_start(self, trainer, pl_module):
        self.calls.clear()
        for name in self.names:
            function = getattr(torch.distributed, name)
            if not hasattr(function, "counted"):
                counted = functools.partial(self.count, function)
                counted.counted = True
                setattr(torch.distributed, name, counted)

    def count(self, function, *args, **kwargs):
        self.calls.append(function.__name__)
        return function(*args, **kwargs)


def test_numbers_are_the_same_everywhere_and_are_not_averaged_once_more(tmp_path):
    collectives, rows = Collectives(tmp_path), tiny.rows(31, seed=2)
    _, found = fit(tmp_path, DataLoader(TensorDataset(rows), 4), callbacks=[collectives], num_sanity_val_steps=0)
    assert found[0][2] == found[1][2]
    calls = torch.load(tmp_path / "calls0")
    assert calls == ["all_reduce", "all_reduce"], "for the counts and means of all, and for the scatters"


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle"])
def test_batches_of_several_loaders_at_once(mode, tmp_path):
    class Both(tiny.TinyAutoencoder):
        def validation_step(self, batch, batch_idx):
            self.encoder(batch["a"][0])

    rows, beside = tiny.rows(13, seed=2), tiny.rows(13, seed=3)
    loaders = {"a": DataLoader(TensorDataset(rows), 4), "b": DataLoader(TensorDataset(beside), 4)}
    model, found = fit(tmp_path, CombinedLoader(loaders, mode), model=Both())
    for history, spectra, _ in found:
        assert history == found[0][0]
        assert history[0]["rank/samples"] == 13, "not the one that fills up"
        torch.testing.assert_close(spectra["encoder"], expected(model, rows), rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler`")
def test_a_process_that_was_launched_to_validate_brings_its_spectra_home():
    monitor, model = EffectiveRankMonitor("encoder"), tiny.TinyAutoencoder()
    trainer = tiny.trainer(callbacks=[monitor], devices=2, strategy="ddp_fork")
    trainer.validate(model, tiny.loader(24, 4), verbose=False)
    torch.testing.assert_close(monitor.singular_values["encoder"], expected(model, tiny.rows(24)), rtol=1e-6, atol=1e-7)
    assert monitor.history == []
    trainer.test(model, tiny.loader(24, 4, seed=7), verbose=False)
    torch.testing.assert_close(
        monitor.singular_values["encoder"], expected(model, tiny.rows(24, seed=7)), rtol=1e-6, atol=1e-7
    )


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler`")
def test_a_checkpoint_that_launched_processes_validate_leaves_the_curve_of_the_fit(tmp_path):
    monitor, checkpoint = EffectiveRankMonitor(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    options = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 3, "enable_checkpointing": True}
    trainer, model = tiny.trainer(callbacks=[monitor, checkpoint], **options), tiny.tiny()
    trainer.fit(model, tiny.loader(), tiny.loader())
    curve = monitor.history
    assert [row["epoch"] for row in curve] == [0, 1, 2]
    trainer.validate(model, tiny.loader(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert monitor.history == curve


def test_three_processes_and_layers_of_three_widths(tmp_path):
    class Deep(tiny.TinyAutoencoder):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(tiny.FEATURES, 9), nn.Tanh(), nn.Linear(9, tiny.DIM))

    rows, layers = tiny.rows(31, seed=2), ["encoder.0", "encoder.2", "decoder"]
    model, found = fit(
        tmp_path, DataLoader(TensorDataset(rows), 4), processes=3, layers=layers, model=Deep(), callbacks=()
    )
    with torch.no_grad():
        first = model.encoder[0](rows)
        outputs = {"encoder.0": first, "encoder.2": model.encoder(rows), "decoder": model(rows)}
    for history, spectra, _ in found:
        assert history == found[0][0]
        for layer, output in outputs.items():
            assert history[0][f"rank/{layer}/samples"] == 31
            right = torch.tensor(reference.deviations(output.double().numpy()))
            torch.testing.assert_close(spectra[layer], right, rtol=1e-6, atol=1e-7)


def test_a_traversal_asks_others_for_examples_only_when_it_draws(tmp_path, monkeypatch):
    asked = []
    broadcast = SingleDeviceStrategy.broadcast

    def counted(self, obj, src=0):
        asked.extend([src] if isinstance(obj, tuple) else [])
        return broadcast(self, obj, src)

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", counted)
    traversal = LatentTraversal("encoder", image_shape=(1, 2, 5), every_n_epochs=4)
    trainer = tiny.trainer(callbacks=[traversal], max_epochs=7, num_sanity_val_steps=0, default_root_dir=tmp_path)
    trainer.fit(tiny.TinyAutoencoder(), tiny.loader(), tiny.loader(24, 8))
    assert asked == [0, 0, 0, 0], "two inputs for the fourth validation, and two for the last"
