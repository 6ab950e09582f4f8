"""Train autoencoders over depths and methods, and see what rank their latents get.

``python examples/rank_sweep.py`` trains on scikit-learn's digits, with nothing to download, in about two minutes. Each
method and depth is a run of its own; stopped at any time, the same command goes on with what is missing.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import data
import sweep_report
import torch
from autoencoders import linear_autoencoder, mlp_autoencoder
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm.auto import tqdm

from lightning_rank import DepthScaledLR, EffectiveRankMonitor, attach_linear_bottleneck

METHODS = ("plain", "irmae", "ours")
LOGGERS = ("wandb", "csv", "tensorboard", "none")


@dataclass(frozen=True)
class DataChoice:
    """Data, the autoencoder that suits it, and how long it takes."""

    make_data: Callable[[], LightningDataModule]
    make_autoencoder: Callable[[], LightningModule]
    dim: int
    max_epochs: int


DATA = {
    "digits": DataChoice(data.digits, mlp_autoencoder, dim=32, max_epochs=150),
    "synthetic": DataChoice(data.synthetic, linear_autoencoder, dim=32, max_epochs=30),
}


@dataclass(frozen=True)
class Run:
    """One training: ``plain`` without linear layers, ``irmae`` as in Jing et al. 2020, or ``ours``."""

    method: str
    depth: int
    gain: float | None
    seed: int

    @property
    def name(self) -> str:
        """Such as ``ours-depth4-gain0.1-seed0``."""
        gain = "" if self.gain is None else f"-gain{self.gain:g}"
        return f"{self.method}-depth{self.depth}{gain}-seed{self.seed}"


class RankSweep:
    """Trains an autoencoder once for each method, depth and seed, and collects the ranks of its latents.

    Each run has a directory with its configuration, its last checkpoint and, once finished, its result. Finished runs
    are not repeated and unfinished ones go on from their checkpoint, so calling :meth:`run` again completes a sweep.

    Args:
        make_autoencoder: Makes a fresh LightningModule; the linear layers go behind its child ``after``. It logs
            ``val/loss``.
        datamodule: What to train and validate on.
        dim: Width of the latents.
        output_dir: Where runs, table and pictures go.
        name: What is trained on what, as the settings below do not say it: part of the identity of every run, for
            a run of the same settings is taken for finished; and the W&B group.
        after: Name of the child that makes the latents.
        methods: Of ``plain`` (no linear layers), ``irmae`` (default initialization, one learning rate) and ``ours``
            (orthogonal with ``gain``, learning rate over depth).
        depths: Numbers of linear layers; ``plain`` takes 0, the others those above 0.
        gain: End-to-end gain of ``ours``.
        seeds: Number of seeds.
        max_epochs: Epochs of each run.
        variance_rtol: Threshold of the numerical rank, relative to the largest variance.
        logger: ``"wandb"``, ``"csv"``, ``"tensorboard"`` or ``"none"``.
        project: W&B project.
        trainer_options: Further arguments of :class:`lightning.pytorch.Trainer`.
    """

    def __init__(
        self,
        make_autoencoder: Callable[[], LightningModule],
        datamodule: LightningDataModule,
        *,
        dim: int,
        output_dir: str | Path,
        name: str,
        after: str = "encoder",
        methods: Sequence[str] = METHODS,
        depths: Sequence[int] = (0, 2, 4, 8),
        gain: float = 0.1,
        seeds: int = 1,
        max_epochs: int = 150,
        variance_rtol: float = 1e-2,
        logger: str = "wandb",
        project: str = "lightning-rank",
        trainer_options: dict[str, Any] | None = None,
    ) -> None:
        if not gain > 0:
            raise ValueError(f"gain: expected a positive number, got {gain}")
        if min(depths, default=-1) < 0:
            raise ValueError(f"depths: expected numbers of 0 or more, got {list(depths)}")
        if max_epochs < 1:
            raise ValueError(f"max_epochs: expected 1 or more, got {max_epochs}")
        for method in methods:
            if method not in METHODS:
                raise ValueError(f"methods: expected some of {METHODS}, got {method!r}")
        if seeds < 1:
            raise ValueError(f"seeds: expected 1 or more, got {seeds}")
        if logger not in LOGGERS:
            raise ValueError(f"logger: expected one of {LOGGERS}, got {logger!r}")
        self.make_autoencoder = make_autoencoder
        self.datamodule = datamodule
        self.dim = dim
        self.output_dir = Path(output_dir)
        self.name = name
        self.after = after
        self.max_epochs = max_epochs
        self.variance_rtol = variance_rtol
        self.logger = logger
        self.project = project
        self.trainer_options = trainer_options or {}
        self.runs = [
            Run(method, depth, gain if method == "ours" else None, seed)
            for seed in range(seeds)
            for method in METHODS
            if method in methods
            for depth in sorted(set(depths))
            if (depth == 0) == (method == "plain")
        ]
        if not self.runs:
            raise ValueError(f"depths: expected 0 for 'plain' or one above 0 for the others, got {list(depths)}")

    def run(self) -> list[dict[str, Any]]:
        """Train what is missing, write table and pictures, and return a dict for each finished run."""
        stopped = False
        for number, run in enumerate(self.runs, start=1):
            if self.result(run) is None:
                try:
                    self._train(run, f"[{number}/{len(self.runs)}] {run.name}")
                except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
                    stopped = True
                    break
        results = [result for run in self.runs if (result := self.result(run)) is not None]
        self._report(results)
        if stopped:
            print(f"Stopped with {len(results)} of {len(self.runs)} runs finished. The same command goes on from here.")
            raise SystemExit(130)
        return results

    def result(self, run: Run) -> dict[str, Any] | None:
        """What a run came to, or ``None`` if it is not finished."""
        path = self.directory(run) / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def directory(self, run: Run) -> Path:
        """Where a run keeps its files; runs with other settings have others."""
        settings = json.dumps(self._config(run), sort_keys=True)
        return self.output_dir / "runs" / f"{run.name}-{hashlib.sha256(settings.encode()).hexdigest()[:6]}"

    def _config(self, run: Run) -> dict[str, Any]:
        return asdict(run) | {
            "dim": self.dim,
            "max_epochs": self.max_epochs,
            "variance_rtol": self.variance_rtol,
            "after": self.after,
            "trainer": {key: str(value) for key, value in self.trainer_options.items()},
            "sweep": self.name,
        }

    def _train(self, run: Run, title: str) -> None:
        directory = self.directory(run)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self._config(run), indent=2))
        seed_everything(run.seed, verbose=False)
        module = attach_linear_bottleneck(
            self.make_autoencoder(),
            after=self.after,
            dim=self.dim,
            depth=run.depth,
            gain=1.0 if run.gain is None else run.gain,
            init="orthogonal" if run.method == "ours" else "default",
        )
        monitor = EffectiveRankMonitor(variance_rtol=self.variance_rtol, log_spectrum_every_n_epochs=50)
        callbacks: list[Callback] = [DepthScaledLR()] if run.method == "ours" else []
        logger = self._make_logger(run, directory)
        if logger:
            callbacks.append(LearningRateMonitor("epoch"))
        every = max(1, self.max_epochs // 15)
        checkpoint = ModelCheckpoint(directory, "last", every_n_epochs=every, enable_version_counter=False)
        last = _resumable(directory / "last.ckpt", self.max_epochs)
        trainer = Trainer(
            max_epochs=self.max_epochs,
            callbacks=[*callbacks, monitor, checkpoint, _Progress(title), _SaveResult(run, monitor, directory)],
            logger=logger or False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            **self.trainer_options,
        )
        exit_code = 1
        try:
            trainer.fit(module, datamodule=self.datamodule, ckpt_path=last)
            exit_code = 0
        finally:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code)

    def _make_logger(self, run: Run, directory: Path) -> Logger | None:
        if self.logger == "wandb":
            # Its id, kept with the run, makes a resumed run one curve, not two.
            path = directory / "wandb_id.txt"
            if rank_zero_only.rank == 0 and not path.exists():
                path.write_text(uuid.uuid4().hex[:8])
            return WandbLogger(
                name=run.name,
                id=path.read_text() if path.exists() else None,
                project=self.project,
                group=self.name,
                tags=[run.method],
                save_dir=directory,
                mode=_wandb_mode(),
                config=self._config(run),
            )
        if self.logger == "none":
            return None
        if self.logger == "csv":
            return CSVLogger(directory, name="csv")  # a resumed run writes another version: it cannot append
        return TensorBoardLogger(directory, name="", version="tensorboard")

    @rank_zero_only
    def _report(self, results: list[dict[str, Any]]) -> None:
        if not results:
            return
        sweep_report.write_csv(results, self.output_dir / "results.csv")
        sweep_report.plot_rank_curves(results, self.output_dir / "rank_curves.png")
        sweep_report.plot_spectra(results, self.output_dir / "spectra.png")
        print(f"\n{sweep_report.table(results)}\n")
        print(f"numerical rank: directions with more than {self.variance_rtol:g} of the largest variance")
        print(f"written to {self.output_dir}: results.csv, rank_curves.png, spectra.png")
        offline = sorted(self.output_dir.glob("runs/*/wandb/offline-run-*"))
        if offline:
            print(f"{len(offline)} W&B runs are offline; to upload them:")
            print(f"wandb sync {self.output_dir}/runs/*/wandb/offline-run-*")


class _Progress(Callback):
    """One line a run: a bar over epochs, with rank and error."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar = tqdm(
            desc=self.title,
            total=trainer.max_epochs,
            initial=trainer.current_epoch,
            unit="epoch",
            disable=not trainer.is_global_zero,
            mininterval=0.5,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = {"rank": "rank/effective", "val error": "val/loss"}
        metrics = trainer.callback_metrics
        values = {key: f"{metrics[name]:.2f}" for key, name in shown.items() if name in metrics}
        self.bar.set_postfix(values, refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class _SaveResult(Callback):
    """Writes the result in the process that has it, when training is complete."""

    def __init__(self, run: Run, monitor: EffectiveRankMonitor, directory: Path) -> None:
        self.run = run
        self.monitor = monitor
        self.directory = directory

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        result = asdict(self.run) | metrics
        result |= {"epochs": trainer.current_epoch, "seconds": round(time.monotonic() - self.start, 1)}
        result["history"] = self.monitor.history
        result["singular_values"] = self.monitor.singular_values["linear_bottleneck"].tolist()
        partial = self.directory / "result.json.partial"
        partial.write_text(json.dumps(result))
        partial.replace(self.directory / "result.json")


def _resumable(checkpoint: Path, max_epochs: int) -> str | None:
    """The checkpoint, unless there is none, or the run was killed between its last one and its result."""
    if not checkpoint.exists():
        return None
    finished_epochs = torch.load(checkpoint, weights_only=True, map_location="cpu")["epoch"] + 1
    return str(checkpoint) if finished_epochs < max_epochs else None


def _wandb_mode() -> str:
    """What the environment says, else offline where no account is set up."""
    import wandb

    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.errors.Error as error:
        print(f"W&B: {error}; logging offline")
        return "offline"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="digits", help="what to train on")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="plain takes depth 0 only")
    parser.add_argument("--depths", nargs="+", type=int, default=[0, 2, 4, 8], help="numbers of linear layers")
    parser.add_argument("--gain", type=float, default=0.1, help="end-to-end gain of ours: the knob of the rank")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--max-epochs", type=int, help="epochs of each run; the default depends on the data")
    parser.add_argument("--variance-rtol", type=float, default=1e-2, help="threshold of the numerical rank")
    parser.add_argument("--logger", choices=LOGGERS, default="wandb", help="where the curves go")
    parser.add_argument("--output-dir", type=Path, help="default: outputs/rank_sweep_DATA")
    parser.add_argument("--accelerator", default="auto", help="as Trainer takes it")
    parser.add_argument("--devices", default="auto", help="as Trainer takes it")
    parser.add_argument("--num-nodes", type=int, default=1, help="as Trainer takes it")
    parser.add_argument("--strategy", default="auto", help="as Trainer takes it")
    parser.add_argument("--precision", default="32-true", help="as Trainer takes it")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the sweep that the command line asks for."""
    args = parse_args(argv)
    choice = DATA[args.data]
    # One line a run is what is wanted here.
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    sweep = RankSweep(
        choice.make_autoencoder,
        choice.make_data(),
        dim=choice.dim,
        output_dir=args.output_dir or Path("outputs") / f"rank_sweep_{args.data}",
        name=f"rank_sweep_{args.data}",
        methods=args.methods,
        depths=args.depths,
        gain=args.gain,
        seeds=args.seeds,
        max_epochs=choice.max_epochs if args.max_epochs is None else args.max_epochs,
        variance_rtol=args.variance_rtol,
        logger=args.logger,
        trainer_options={
            "accelerator": args.accelerator,
            "devices": args.devices,
            "num_nodes": args.num_nodes,
            "strategy": args.strategy,
            "precision": args.precision,
        },
    )
    return sweep.run()


if __name__ == "__main__":
    main(sys.argv[1:])
