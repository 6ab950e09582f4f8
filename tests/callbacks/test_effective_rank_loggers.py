"""What EffectiveRankMonitor sends to loggers, read back from them."""

import csv
import os

import pytest
import tiny
import torch
import wandb
import wandb_reader
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from lightning_rank import EffectiveRankMonitor, LatentTraversal
from lightning_rank.callbacks._figures import spectrum_figure, waterfall_figure


def fit(monitor=None, callbacks=(), **options):
    monitor = monitor or EffectiveRankMonitor(log_spectrum_every_n_epochs=2)
    trainer = tiny.trainer(callbacks=[monitor, *callbacks], max_epochs=4, **options)
    trainer.fit(tiny.tiny(), tiny.loader(), tiny.loader(53, 10, seed=2))
    return trainer, monitor


@pytest.mark.filterwarnings("ignore")  # what W&B's threads and processes warn of is W&B's affair
def test_an_offline_wandb_run_has_the_curve_over_epochs_the_histograms_and_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, mode="offline")
    _, monitor = fit(logger=logger)
    logger.experiment.finish()
    wandb.teardown()  # waits until the file is written
    os.environ.pop("WANDB_MODE", None)  # Lightning sets it
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = wandb_reader.history(path)
    assert wandb_reader.step_metrics(path)["*"] == "trainer/global_step", "an axis that grows within an epoch, too"
    curve = [(row["epoch"], row["rank/effective"]) for row in rows if "rank/effective" in row]
    assert [epoch for epoch, _ in curve] == [0, 1, 2, 3]
    assert [value for _, value in curve] == pytest.approx([row["rank/effective"] for row in monitor.history], rel=1e-6)
    assert [row["trainer/global_step"] for row in rows if "rank/effective" in row] == [3, 7, 11, 15]
    histograms = [row for row in rows if "rank/log10_singular_values/values" in row]
    assert [row["epoch"] for row in histograms] == [0, 1, 2, 3]
    assert [row["trainer/global_step"] for row in histograms] == [3, 7, 11, 15]
    assert sum(histograms[-1]["rank/log10_singular_values/values"]) == tiny.DIM
    for name in ("spectrum", "waterfall", "weight_spectrum", "weight_waterfall"):
        steps = [row["trainer/global_step"] for row in rows if f"rank/{name}/filenames" in row]
        assert steps == [3, 11, 15], name
    assert len(list(path.parent.glob("files/media/images/rank/*.png"))) == 12


def test_tensorboard_has_scalars_histograms_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(logger=logger)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, {"histograms": 0, "images": 0, "scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("rank/effective")] == [3, 7, 11, 15]
    for name in ("", "weight_"):
        assert [event.step for event in events.Histograms(f"rank/{name}log10_singular_values")] == [3, 7, 11, 15]
        for picture in ("spectrum", "waterfall"):
            assert [event.step for event in events.Images(f"rank/{name}{picture}")] == [3, 11, 15]


@pytest.mark.filterwarnings("ignore")  # what MLflow warns of is MLflow's affair
def test_a_local_mlflow_run_has_the_curve_and_the_pictures(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = f"file:{tmp_path}/runs"
    logger = MLFlowLogger(tracking_uri=store)
    traversal = LatentTraversal(image_shape=(1, 2, 5), every_n_epochs=3)
    monitor = EffectiveRankMonitor(["encoder"], log_spectrum_every_n_epochs=2)
    fit(monitor, [traversal], logger=logger)
    client = mlflow.MlflowClient(store)
    curve = [(point.step, point.value) for point in client.get_metric_history(logger.run_id, "rank/encoder/effective")]
    assert [step for step, _ in curve] == [3, 7, 11, 15]
    assert [value for _, value in curve] == pytest.approx(
        [row["rank/encoder/effective"] for row in monitor.history], rel=1e-6
    )
    for name in ("spectrum", "waterfall"):
        paths = [artifact.path for artifact in client.list_artifacts(logger.run_id, f"rank/encoder/{name}")]
        assert paths == [f"rank/encoder/{name}/step={step:09d}.png" for step in (3, 11, 15)]
    sizes = {Image.open(path).size for path in tmp_path.rglob("spectrum/*.png")}
    assert sizes == {(720, 432)}
    (last,) = tmp_path.rglob("traversal/linear_bottleneck/step=000000015.png")
    assert pil_to_tensor(Image.open(last)).equal(traversal.picture)
    assert not list(tmp_path.rglob("latent_traversals")), "files of pictures are for loggers that take none"


class CometLogger(Logger):
    """Takes what comet_ml's Experiment takes; a run of that wants an account."""

    name, version = "comet", 0

    def __init__(self):
        super().__init__()
        self.experiment, self.metrics, self.calls = self, [], []

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None):
        figure.canvas.draw()
        self.calls.append((figure_name, step))

    def log_image(self, image_data, name=None, overwrite=False, image_format="png", step=None):
        self.calls.append((name, step, image_data.size))

    def log_histogram_3d(self, values, name=None, step=None, epoch=None, metadata=None):
        self.calls.append((name, step, epoch, len(values)))


def test_comet_gets_figures_pictures_and_histograms_by_its_own_calls(tmp_path):
    logger = CometLogger()
    traversal = LatentTraversal(image_shape=(1, 2, 5), every_n_epochs=3)
    _, monitor = fit(None, [traversal], logger=logger, default_root_dir=tmp_path)
    assert [step for step, metrics in logger.metrics if "rank/effective" in metrics] == [3, 7, 11, 15]
    assert [call for call in logger.calls if call[0] == "rank/log10_singular_values"] == [
        ("rank/log10_singular_values", step, epoch, tiny.DIM) for epoch, step in enumerate((3, 7, 11, 15))
    ]
    for name in ("rank/spectrum", "rank/waterfall", "rank/weight_spectrum"):
        assert [call[1] for call in logger.calls if call[0] == name] == [3, 11, 15]
    _, height, width = traversal.picture.shape
    expected = [("traversal/linear_bottleneck", step, (width, height)) for step in (11, 15)]
    assert [call for call in logger.calls if call[0] == "traversal/linear_bottleneck"] == expected
    with next(tmp_path.rglob("latents*.csv")).open() as file:
        spectra = list(csv.DictReader(file))
    assert [row["step"] for row in spectra] == ["3", "7", "11", "15"], "the whole curve, however often one draws"
    last = [float(spectra[-1][f"sigma_{k + 1}"]) for k in range(tiny.DIM)]
    assert last == next(iter(monitor.singular_values.values())).tolist()
    assert not list(tmp_path.rglob("*.png"))


class Other(Logger):
    """A logger of a kind that nobody here knows."""

    name, version = "other", 0

    def __init__(self):
        super().__init__()
        self.metrics = []

    def log_metrics(self, metrics, step=None):
        self.metrics.append(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass


def read_spectra(path):
    with path.open() as file:
        header, *rows = csv.reader(file)
    return header, torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["csv", "unknown"])
def test_other_loggers_get_scalars_and_the_spectra_beside_the_checkpoints(kind, tmp_path):
    logger = CSVLogger(tmp_path) if kind == "csv" else Other()
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints")
    _, monitor = fit(logger=logger, callbacks=[checkpoint], enable_checkpointing=True)
    if kind == "unknown":
        assert [row["rank/effective"] for row in logger.metrics if "rank/effective" in row] == pytest.approx(
            [row["rank/effective"] for row in monitor.history], rel=1e-6
        )
    directory = tmp_path / "checkpoints/rank_spectra"
    header, rows = read_spectra(directory / "latents_of_linear_bottleneck.csv")
    assert header == ["epoch", "step", *(f"sigma_{k}" for k in range(1, tiny.DIM + 1))]
    assert rows[:, :2].tolist() == [[0, 3], [1, 7], [2, 11], [3, 15]]
    torch.testing.assert_close(rows[-1, 2:], monitor.singular_values["linear_bottleneck"])
    _, rows = read_spectra(directory / "composed_matrix_of_linear_bottleneck.csv")
    torch.testing.assert_close(rows[-1, 2:], monitor.weight_singular_values["linear_bottleneck"])


def test_without_a_logger_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(default_root_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pictures_can_be_switched_off(tmp_path):
    fit(EffectiveRankMonitor(log_spectrum_every_n_epochs=None), logger=CSVLogger(tmp_path))
    assert not list(tmp_path.rglob("rank_spectra"))


def test_pictures_are_drawn_of_degenerate_spectra_too():
    zero, nan = torch.zeros(3, dtype=torch.float64), torch.full((3,), torch.nan, dtype=torch.float64)
    steep = torch.tensor([1.0, 1e-30, 0.0], dtype=torch.float64)
    for spectrum, drawn in ((zero, [1e-8] * 3), (nan, [1e-8] * 3), (steep, [1, 1e-8, 1e-8])):
        curve, waterfall = spectrum_figure(spectrum, "title", 0), waterfall_figure([spectrum], [0], "epoch", "title")
        assert list(curve.axes[0].lines[0].get_ydata()) == pytest.approx(drawn)
        assert waterfall.axes[0].images[0].get_array()[0].tolist() == pytest.approx(drawn)
        for figure in (curve, waterfall):
            figure.canvas.draw()
