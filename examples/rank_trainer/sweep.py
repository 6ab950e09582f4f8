"""Trainings over methods, depths, gains and seeds, that survive being stopped."""

import json
import math
import os
import shlex
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_rank.functional import VARIANCE_RTOL, weight_decay_for_variance_cutoff
from lightning_rank.functional.rank import check_variance_rtol
from rank_trainer import loggers, report
from rank_trainer.failures import DataError, OutputError, in_first_process, in_words, stops_all, told_in_process
from rank_trainer.files import make_writable, write_whole
from rank_trainer.methods import METHODS, Method, by_name
from rank_trainer.runs import Run, check_whole_numbers, identity, list_runs
from rank_trainer.training import load_trained, make_trainer, train


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
        methods: What to compare: some of :data:`~rank_trainer.METHODS`, or their names, or your own.
        depths: Numbers of linear layers; a method that has none takes 0, the others those above 0.
        gains: End-to-end gains, of the methods that take one.
        seeds: The seeds.
        max_epochs: Epochs of each run.
        variance_cutoff: Smallest variance of the data worth keeping: all runs get the weight decay that cuts below it.
        variance_rtol: Threshold of the numerical rank, relative to the largest variance.
        evaluate: Called with the trained module, a directory for pictures and the seed; what it returns is added to
            the result. An :class:`~rank_trainer.evaluation.AutoencoderEvaluation`, for example.
        shard: ``(i, n)``: train every n-th run only, from the i-th on, counted from 1.
        logger: ``"wandb"``, ``"csv"``, ``"tensorboard"`` or ``"none"``.
        project: W&B project.
        config: Further settings that tell one run from another.
        trainer_options: Further arguments of :class:`lightning.pytorch.Trainer`.

    Attributes:
        methods: The methods by name.
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
        methods: Sequence[Method | str] = tuple(METHODS),
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
        check_whole_numbers("max_epochs", [max_epochs], least=1)
        if variance_cutoff is not None and not 0 < variance_cutoff < math.inf:
            raise ValueError(f"variance_cutoff: expected a positive, finite number, got {variance_cutoff}")
        check_variance_rtol(variance_rtol)
        check_whole_numbers("shard", shard, least=1)
        if not 1 <= shard[0] <= shard[1]:
            raise ValueError(f"shard: expected (i, n) with i from 1 to n, got {shard}")
        if os.path.isfile(output_dir):
            raise ValueError(f"output_dir: expected a folder, got the file {output_dir}")
        loggers.check_logger(logger)
        try:
            make_trainer(max_epochs, [], None, trainer_options or {})
        except (ImportError, TypeError, ValueError, MisconfigurationException) as error:
            raise ValueError(f"trainer_options: {error}") from error
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
        self.methods = by_name(methods)
        self.runs = list_runs(self.methods.values(), depths, gains, seeds)
        check_whole_numbers("dim", map(self._dim, self.runs), least=1)

    def run(self) -> list[dict[str, Any]]:
        """Train what is missing, write the report, and return a dict for each finished run.

        Raises:
            SystemExit: It was interrupted.
            DataError: The data is missing or damaged.
            OSError: There is no space left, or ``output_dir`` cannot be written to.
        """
        self.failures = {}
        try:
            for folder in (self.output_dir, self.output_dir / "runs"):
                make_writable(folder)
        except OSError as error:
            raise OutputError(f"output_dir: expected a folder to write to, got {self.output_dir} ({error})") from error
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
        options = self.methods[run.method].options
        return asdict(run) | {
            "dim": self._dim(run),
            "max_epochs": self.max_epochs,
            "variance_cutoff": self.variance_cutoff,
            "variance_rtol": self.variance_rtol,
            "after": self.after,
            "trainer": {key: str(value) for key, value in self.trainer_options.items()},
            "sweep": self.name,
            **({"options": dict(options)} if options else {}),
            **self.config,
        }

    def _dim(self, run: Run) -> int:
        return self.methods[run.method].options.get("dim", self.dim)

    def _attempt(self, run: Run, title: str) -> None:
        try:
            self._train(run, title)
        except Exception as caught:
            error = told_in_process(caught)
            if stops_all(error) and error is caught:
                raise
            if stops_all(error):
                raise error from caught
            self.failures[run] = in_words(error)
            self._note_failure(run)

    @rank_zero_only
    def _note_failure(self, run: Run) -> None:
        path = self.directory(run) / "error.txt"
        write_whole(path, traceback.format_exc())
        print(f"\n{run.name} failed, and the sweep goes on. {self.failures[run]}\n(all of it in {path})")

    def _train(self, run: Run, title: str) -> None:
        directory, config = self.directory(run), self._config(run)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / "config.json", json.dumps(config, indent=2))
        seed_everything(run.seed, verbose=False)
        module = self.make_module(run)
        of_run = {"name": run.name, "project": self.project, "group": self.name, "tags": [run.method, self.name]}
        logger = loggers.make_logger(self.logger, directory, **of_run, config=config)
        exit_code = 1
        try:
            trainer = train(
                module,
                self.datamodule,
                directory,
                title=title,
                callbacks=[make() for make in self.methods[run.method].callbacks],
                logger=logger,
                max_epochs=self.max_epochs,
                variance_rtol=self.variance_rtol,
                trainer_options=self.trainer_options,
            )
            in_first_process(trainer, lambda: self._measure(run, trainer, module))
            exit_code = 0
        finally:
            loggers.finish(logger, exit_code)

    def make_module(self, run: Run) -> LightningModule:
        """The module of a run, before it is trained."""
        method = self.methods[run.method]
        options = dict(method.options)
        if self.variance_cutoff is not None:
            options["weight_decay"] = weight_decay_for_variance_cutoff(self.variance_cutoff, run.depth)
        gain = {} if run.gain is None else {"gain": run.gain}
        return method.attach(
            self.make_autoencoder(**options), after=self.after, dim=self._dim(run), depth=run.depth, **gain
        )

    def trained(self, run: Run) -> LightningModule:
        """The module as a finished run left it, to be measured, cut or used."""
        return load_trained(self.make_module(run), self.directory(run))

    def _measure(self, run: Run, trainer: Trainer, module: LightningModule) -> None:
        """On whole splits, and so in one process."""
        directory = self.directory(run)
        result = asdict(run) | json.loads((directory / "trained.json").read_text())
        if self.evaluate is not None:
            measured = self.evaluate(module.to(trainer.strategy.root_device), directory, run.seed)
            loggers.log_result(trainer.logger, measured, sorted(directory.glob("*.png")))
            result |= measured
        write_whole(directory / "result.json", json.dumps(result))
        (directory / "error.txt").unlink(missing_ok=True)

    @rank_zero_only
    def _report(self) -> None:
        results = self.results()
        if results:
            configs = [self._config(run) for run in self.runs]
            common = {key: value for key, value in configs[0].items() if all(value == c.get(key) for c in configs)}
            settings = {key: value for key, value in common.items() if key not in asdict(self.runs[0])}
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
            print(f"wandb sync {shlex.quote(str(self.output_dir))}/runs/*/wandb/offline-run-*")
