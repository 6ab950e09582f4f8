"""Trainings over methods, depths, gains and seeds, that survive being stopped."""

import errno
import json
import pickle
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lightning_rank import DepthScaledLR, EffectiveRankMonitor, attach_linear_bottleneck
from lightning_rank.functional import VARIANCE_RTOL, weight_decay_for_variance_cutoff
from rank_trainer import loggers, report
from rank_trainer.callbacks import Progress, SaveTraining
from rank_trainer.data import DataError
from rank_trainer.files import write_whole
from rank_trainer.runs import METHODS, Run, identity, list_runs


class RankSweep:
    """Trains an autoencoder once for each method, depth, gain and seed, and collects the ranks of its latents.

    Each run has a directory with its configuration, its last checkpoint and, once finished, its result. Finished runs
    are not repeated and unfinished ones go on from their checkpoint, so calling :meth:`run` again completes a sweep.
    A run that fails is kept in :attr:`failures`, and the others go on; only without data or without space on the disk
    they do not. If several processes train, a run that fails must fail in all of them.

    Args:
        make_autoencoder: Makes a fresh LightningModule; the linear layers go behind its child ``after``. It logs
            ``val/loss``. With a ``variance_cutoff`` it takes ``weight_decay``, for coupled L2 decay.
        datamodule: What to train and validate on.
        dim: Width of the latents.
        output_dir: Where runs, table and pictures go.
        name: What is trained on what, as the settings below do not say it: part of the identity of every run, for
            a run of the same settings is taken for finished; and the W&B group.
        after: Name of the child that makes the latents.
        methods: Of ``plain`` (no linear layers), ``irmae`` (default initialization, one learning rate) and ``ours``
            (orthogonal with ``gain``, learning rate over depth).
        depths: Numbers of linear layers; ``plain`` takes 0, the others those above 0.
        gains: End-to-end gains of ``ours``.
        seeds: The seeds.
        max_epochs: Epochs of each run.
        variance_cutoff: Smallest variance of the data worth keeping: all runs get the weight decay that cuts below it.
        variance_rtol: Threshold of the numerical rank, relative to the largest variance.
        evaluate: Called with the trained module, a directory for pictures and the seed; what it returns is added to
            the result. An :class:`~evaluation.AutoencoderEvaluation`, for example.
        shard: ``(i, n)``: train every n-th run only, from the i-th on, counted from 1.
        logger: ``"wandb"``, ``"csv"``, ``"tensorboard"`` or ``"none"``.
        project: W&B project.
        config: Further settings that tell one run from another.
        trainer_options: Further arguments of :class:`lightning.pytorch.Trainer`.

    Attributes:
        runs: All runs, those of other shards too.
        failures: What went wrong, by run.
    """

    def __init__(
        self,
        make_autoencoder: Callable[..., LightningModule],
        datamodule: LightningDataModule,
        *,
        dim: int,
        output_dir: str | Path,
        name: str,
        after: str = "encoder",
        methods: Sequence[str] = METHODS,
        depths: Sequence[int] = (0, 2, 4, 8),
        gains: Sequence[float] = (0.1,),
        seeds: Sequence[int] = (0,),
        max_epochs: int = 150,
        variance_cutoff: float | None = None,
        variance_rtol: float = VARIANCE_RTOL,
        evaluate: Callable[[LightningModule, Path, int], dict[str, float]] | None = None,
        shard: tuple[int, int] = (1, 1),
        logger: str = "wandb",
        project: str = "lightning-rank",
        config: dict[str, Any] | None = None,
        trainer_options: dict[str, Any] | None = None,
    ) -> None:
        if max_epochs < 1:
            raise ValueError(f"max_epochs: expected 1 or more, got {max_epochs}")
        if variance_cutoff is not None and not variance_cutoff > 0:
            raise ValueError(f"variance_cutoff: expected a positive number, got {variance_cutoff}")
        if not 1 <= shard[0] <= shard[1]:
            raise ValueError(f"shard: expected (i, n) with i from 1 to n, got {shard}")
        if logger not in loggers.LOGGERS:
            raise ValueError(f"logger: expected one of {loggers.LOGGERS}, got {logger!r}")
        self.make_autoencoder = make_autoencoder
        self.datamodule = datamodule
        self.dim = dim
        self.output_dir = Path(output_dir)
        self.name = name
        self.after = after
        self.max_epochs = max_epochs
        self.variance_cutoff = variance_cutoff
        self.variance_rtol = variance_rtol
        self.evaluate = evaluate
        self.shard = shard
        self.logger = logger
        self.project = project
        self.config = config or {}
        self.trainer_options = trainer_options or {}
        self.failures: dict[Run, str] = {}
        self.runs = list_runs(methods, depths, gains, seeds)

    def run(self) -> list[dict[str, Any]]:
        """Train what is missing, write the report, and return a dict for each finished run.

        Raises:
            SystemExit: It was interrupted.
            DataError: The data is missing or damaged.
            OSError: There is no space left.
        """
        self.failures = {}
        number, shards = self.shard
        # Looked up before anything is trained, so that all processes of a distributed run see the same.
        missing = [(k, run) for k, run in enumerate(self.runs, 1) if self.result(run) is None]
        try:
            for k, run in missing:
                if k % shards == number % shards:
                    self._attempt(run, f"[{k}/{len(self.runs)}] {run.name}")
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
            self._report()
            finished = f"{len(self.results())} of {len(self.runs)} runs finished"
            print(f"Stopped with {finished}. The same command goes on from here.")
            raise SystemExit(130) from None
        except DataError:
            self._report()
            raise
        self._report()
        return self.results()

    def results(self) -> list[dict[str, Any]]:
        """Those of the finished runs."""
        return [result for run in self.runs if (result := self.result(run)) is not None]

    def result(self, run: Run) -> dict[str, Any] | None:
        """What a run came to, or ``None`` if it is not finished."""
        path = self.directory(run) / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def directory(self, run: Run) -> Path:
        """Where a run keeps its files; runs with other settings have others."""
        return self.output_dir / "runs" / f"{run.name}-{identity(self._config(run))}"

    def _config(self, run: Run) -> dict[str, Any]:
        return asdict(run) | {
            "dim": self.dim,
            "max_epochs": self.max_epochs,
            "variance_cutoff": self.variance_cutoff,
            "variance_rtol": self.variance_rtol,
            "after": self.after,
            "trainer": {key: str(value) for key, value in self.trainer_options.items()},
            "sweep": self.name,
            **self.config,
        }

    def _attempt(self, run: Run, title: str) -> None:
        try:
            self._train(run, title)
        except DataError:
            raise
        except Exception as error:
            if _out_of_space(error):
                raise
            self.failures[run] = f"{type(error).__name__}: {error}"
            self._note_failure(run)

    @rank_zero_only
    def _note_failure(self, run: Run) -> None:
        path = self.directory(run) / "error.txt"
        write_whole(path, traceback.format_exc())
        print(f"\n{run.name} failed, and the sweep goes on. {self.failures[run]}\n(all of it in {path})")

    def _train(self, run: Run, title: str) -> None:
        directory = self.directory(run)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / "config.json", json.dumps(self._config(run), indent=2))
        seed_everything(run.seed, verbose=False)
        module = self.make_module(run)
        monitor = EffectiveRankMonitor(variance_rtol=self.variance_rtol, log_spectrum_every_n_epochs=50)
        logger = loggers.make_logger(
            self.logger,
            directory,
            name=run.name,
            project=self.project,
            group=self.name,
            tags=[run.method, self.name],
            config=self._config(run),
        )
        callbacks: list[Callback] = [DepthScaledLR()] if run.method == "ours" else []
        if logger:
            callbacks.append(LearningRateMonitor("epoch"))
        every = max(1, self.max_epochs // 15)
        checkpoint = ModelCheckpoint(directory, "last", every_n_epochs=every, enable_version_counter=False)
        trainer = Trainer(
            max_epochs=self.max_epochs,
            callbacks=[*callbacks, monitor, checkpoint, Progress(title), SaveTraining(monitor, directory)],
            logger=logger or False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            **self.trainer_options,
        )
        exit_code = 1
        try:
            # Of a run that was only not measured yet this brings back the weights, and trains no more.
            trainer.fit(module, datamodule=self.datamodule, ckpt_path=_resumable(directory, self.max_epochs))
            self._measure(run, trainer, module)
            exit_code = 0
        finally:
            loggers.finish(logger, exit_code)

    def make_module(self, run: Run) -> LightningModule:
        """The module of a run, before it is trained."""
        options = {}
        if self.variance_cutoff is not None:
            options["weight_decay"] = weight_decay_for_variance_cutoff(self.variance_cutoff, run.depth)
        return attach_linear_bottleneck(
            self.make_autoencoder(**options),
            after=self.after,
            dim=self.dim,
            depth=run.depth,
            gain=1.0 if run.gain is None else run.gain,
            init="orthogonal" if run.method == "ours" else "default",
        )

    def _measure(self, run: Run, trainer: Trainer, module: LightningModule) -> None:
        """In one process, on whole splits; the others wait, as long as the process group lets them, and go on with it.

        A failure is one of all processes, so that they stay together.
        """
        directory, error = self.directory(run), None
        if trainer.is_global_zero:
            try:
                result = asdict(run) | json.loads((directory / "trained.json").read_text())
                if self.evaluate is not None:
                    measured = self.evaluate(module.to(trainer.strategy.root_device), directory, run.seed)
                    loggers.log_result(trainer.logger, measured, sorted(directory.glob("*.png")))
                    result |= measured
                write_whole(directory / "result.json", json.dumps(result))
                (directory / "error.txt").unlink(missing_ok=True)
            except Exception as caught:
                error = caught
        error = trainer.strategy.broadcast(error)
        if error is not None:
            raise error

    @rank_zero_only
    def _report(self) -> None:
        results = self.results()
        if results:
            settings = {
                key: value for key, value in self._config(self.runs[0]).items() if key not in asdict(self.runs[0])
            }
            grids = {run.name: sorted(self.directory(run).glob("*.png")) for run in self.runs if self.result(run)}
            written = report.write(results, grids, settings, self.output_dir)
            print(f"\n{report.text(results)}\n")
            print(f"numerical rank: directions with more than {self.variance_rtol:g} of the largest variance")
            print(f"written to {self.output_dir}: {', '.join(written)}")
        for run, failure in self.failures.items():
            print(f"failed: {run.name}: {failure}")
        offline = sorted(self.output_dir.glob("runs/*/wandb/offline-run-*"))
        if offline:
            print(f"{len(offline)} W&B runs are offline; to upload them:")
            print(f"wandb sync {self.output_dir}/runs/*/wandb/offline-run-*")


def _resumable(directory: Path, max_epochs: int) -> Path | None:
    """The checkpoint, unless there is none, it is damaged, or it is the last one and what it came to is missing."""
    checkpoint = directory / "last.ckpt"
    if not checkpoint.exists():
        return None
    try:
        finished_epochs = torch.load(checkpoint, weights_only=True, map_location="cpu")["epoch"] + 1
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:  # a full disk, or killed while it was written
        rank_zero_warn(f"{checkpoint} cannot be read, so its run starts anew ({error})")
        return None
    return checkpoint if finished_epochs < max_epochs or (directory / "trained.json").exists() else None


def _out_of_space(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
