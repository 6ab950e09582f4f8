"""The script in several processes: what they come to together, and what W&B sees of them."""

import itertools
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import rank_sweep
import torch
import wandb_reader
import yaml
from PIL import Image
from processes import in_processes
from test_examples import command, environment, results

from rank_trainer import RankSweep
from rank_trainer.autoencoders import linear_autoencoder
from rank_trainer.data import TensorDataModule
from rank_trainer.methods import by_name
from rank_trainer.runs import list_runs

SWEEP = yaml.safe_load(Path(rank_sweep.__file__).with_name("sweep.yaml").read_text())


def run(start: list[str], **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(start, env=environment(**variables), capture_output=True, text=True, timeout=200, check=True)


@pytest.mark.slow
def test_two_processes_come_to_what_one_does(tmp_path):
    # The whole training split is a batch, so that one process and two take the same steps on the same images; the
    # gradients are those of the halves, averaged. 224 images to validate on are 112 each.
    options = ["--logger", "none", "--methods", "ours", "--depths", "2", "--gain", "0.5", "--max-epochs", "20"]
    run(command(tmp_path / "one", *options, "--devices", "1", "--batch-size", "1348"))
    run(command(tmp_path / "two", *options, "--devices", "2", "--strategy", "ddp", "--batch-size", "674"))
    (one,), (two,) = results(tmp_path / "one"), results(tmp_path / "two")
    assert one.keys() == two.keys()
    for key in ("method", "depth", "gain", "seed", "epochs", "rank/samples", "rank/numerical", "samples/rank"):
        assert one.pop(key) == two.pop(key), key
    one.pop("seconds"), two.pop("seconds")
    for key, value in one.items():
        # A probe may judge 2 of 225 test images otherwise; all else is equal but for rounding.
        tolerance = {"abs": 0.01} if key.startswith("probe/") else {"rel": 1e-4}
        assert float(two[key]) == pytest.approx(float(value), **tolerance), key
    assert {"rank/effective", "val/loss", "test/error", "probe/all", "frechet/classifier/mixture"} <= one.keys()


def agents_command(values: dict) -> list[str]:
    """What ``wandb agent`` makes of ``command`` in the YAML."""
    replaced = {"${env}": ["/usr/bin/env"], "${program}": [rank_sweep.__file__], "python": [sys.executable]}
    replaced["${args}"] = [f"--{name}={value}" for name, value in values.items()]
    return list(itertools.chain(*(replaced.get(part, [part]) for part in SWEEP["command"])))


def grid() -> list[dict]:
    columns = [parameter["values"] for parameter in SWEEP["parameters"].values()]
    return [dict(zip(SWEEP["parameters"], row, strict=True)) for row in itertools.product(*columns)]


def test_the_wandb_sweep_gives_every_run_of_ours_and_irmae_once():
    assert (Path(rank_sweep.__file__).parents[1] / SWEEP["program"]).samefile(rank_sweep.__file__)
    runs = []
    for values in grid():
        args = rank_sweep.parse_args(agents_command(values)[3:])
        runs += list_runs(
            by_name(args.methods).values(), args.depths, [0.1], range(args.first_seed, args.first_seed + args.seeds)
        )
    assert len(runs) == len(set(runs)) == 2 * 3 * 3


@pytest.mark.slow
def test_a_run_of_a_wandb_sweep_is_one_wandb_run_with_two_processes(tmp_path):
    more = ["--max-epochs", "1", "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    start = [*agents_command(grid()[-1]), *more, "--output-dir", str(tmp_path)]
    run(start, HOME=str(tmp_path), WANDB_MODE="offline", WANDB_SWEEP_ID="s1", WANDB_RUN_ID="agents-run")
    (path,) = tmp_path.rglob("*.wandb")
    records = wandb_reader.records(path)
    (described,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (described.run_id, described.run_group, described.sweep_id) == ("agents-run", "rank_sweep_digits", "s1")
    assert {"ours", "rank_sweep_digits"} == set(described.tags)
    config = {item.key: item.value_json for item in described.config.update}
    assert (config["depth"], config["seed"], config["method"]) == ("8", "2", '"ours"')
    logged = set().union(*wandb_reader.history(path))
    assert {"test/error", "probe/all", "frechet/classifier/gaussian", "rank/effective"} <= logged
    assert {"reconstructions", "samples_mixture", "interpolations"} <= {key.split("/")[0] for key in logged}


def test_a_command_of_several_runs_is_no_run_of_a_wandb_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    with pytest.raises(SystemExit, match="for `wandb agent` a command is one run, this one is 7"):
        rank_sweep.main(["--output-dir", str(tmp_path)])


@pytest.mark.slow
def test_what_only_one_process_finds_stops_them_all(tmp_path):
    # The test split is read when training is over, and by the first process only.
    for number, split in enumerate(["train"] * 16 + ["val"] * 4 + ["test"] * 4):
        path = tmp_path / "images" / split / f"kind{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:40])
    options = ["--data", "folder", "--data-dir", str(tmp_path / "images"), "--batch-size", "4", "--max-epochs", "1"]
    options += ["--logger", "none", "--methods", "ours", "--depths", "2", "4", "--devices", "2", "--strategy", "ddp"]
    start = command(tmp_path / "out", *options)
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.count(f"error: {path}: this image cannot be decoded") == 2, "each process says it, and ends"
    assert "Finished runs are kept" in done.stderr


class LostError(Exception):
    """One that cannot be pickled; and one that can be, but not read."""

    def __init__(self, what, held):
        super().__init__(what)
        self.held = held


@pytest.mark.slow
@pytest.mark.parametrize("held", [lambda: None, "a string"], ids=["cannot be pickled", "cannot be read"])
def test_an_exception_that_does_not_travel_fails_its_run_in_all_processes(tmp_path, held):
    (tmp_path / "out").mkdir()
    first, second = in_processes(2, _failing_sweep, tmp_path, tmp_path / "out", held)
    told = {f"ours-depth{depth}-gain0.1-seed0": "LostError: no measure" for depth in (2, 4)}
    assert first == second == told
    traces = [path.read_text() for path in (tmp_path / "out").glob("runs/*/error.txt")]
    assert len(traces) == 2
    assert all("raise LostError" in trace for trace in traces), "its own traceback"


def _failing_sweep(rank, world_size, directory, held):
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(100)  # a process that waits for ever ends, and so does the test

    def evaluate(module, pictures, seed):
        raise LostError("no measure", held)

    splits = [(torch.randn(32, 10),) for _ in range(3)]
    sweep = RankSweep(
        partial(linear_autoencoder, 10, 6),
        TensorDataModule(*splits, batch_size=8),
        dim=6,
        output_dir=directory,
        name="failing",
        methods=["ours"],
        depths=[2, 4],
        max_epochs=1,
        evaluate=evaluate,
        logger="none",
        trainer_options={"accelerator": "cpu", "devices": world_size, "strategy": "ddp"},
    )
    sweep.run()
    return {run.name: failure for run, failure in sweep.failures.items()}
