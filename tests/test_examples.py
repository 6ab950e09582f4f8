"""The example trainer, as a user runs it."""

import csv
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import monitor_any_model
import pytest
import rank_sweep
import shrink_autoencoder
import torch
from PIL import Image

from lightning_rank.functional import VARIANCE_RTOL
from rank_trainer import Method

SCRIPT = Path(rank_sweep.__file__)
QUICK = ["--max-epochs", "2", "--depths", "0", "2"]


def results(directory: Path) -> list[dict[str, str]]:
    with (directory / "results.csv").open() as file:
        return list(csv.DictReader(file))


def command(directory: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--output-dir", str(directory), "--accelerator", "cpu", *arguments]


def environment(**more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return clean | {"OMP_NUM_THREADS": "1", "HOME": more.get("HOME", clean.get("HOME", ""))} | more


def test_digits_leave_table_pictures_and_a_wandb_run_each(tmp_path):
    done = subprocess.run(
        command(tmp_path, *QUICK), env=environment(HOME=str(tmp_path)), capture_output=True, text=True, check=True
    )
    rows = results(tmp_path)
    assert [(row["method"], row["depth"], row["epochs"]) for row in rows] == [
        ("plain", "0", "2"),
        ("irmae", "2", "2"),
        ("ours", "2", "2"),
    ]
    for row in rows:
        assert 1 <= float(row["rank/effective"]) <= 32
        assert float(row["rank/samples"]) == 224
        assert 0.5 < float(row["probe/10"]) < float(row["probe/all"]) < 1
        assert float(row["test/error"]) == pytest.approx(float(row["val/loss"]), rel=0.1)
        assert float(row["samples/count"]) == 225
        assert float(row["frechet/classifier/gaussian"]) > 0
        assert "fid" not in "".join(row)
    for name in ("rank_curves.png", "rank_by_depth.png", "quality_by_rank.png", "spectra.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.glob("runs/*/wandb/offline-run-*/*.wandb"))) == 3
    assert f"wandb sync {tmp_path}/runs/*/wandb/offline-run-*" in done.stdout
    assert "| effective rank |" in " ".join(done.stdout.split())
    assert "[3/3] ours-depth2-gain0.1-seed0" in done.stderr


def test_the_default_is_seven_runs():
    sweep = rank_sweep.RankSweep(torch.nn.Identity, None, dim=4, output_dir=".", name="here")
    assert [(run.method, run.depth) for run in sweep.runs] == [
        ("plain", 0),
        *(("irmae", depth) for depth in (2, 4, 8)),
        *(("ours", depth) for depth in (2, 4, 8)),
    ]


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_finished_and_the_same_command_goes_on(tmp_path):
    arguments = command(tmp_path, "--logger", "none", "--max-epochs", "60", "--depths", "0", "2")
    # Tests that run in the background may have been started with the signal ignored, which a new process inherits.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/irmae*/last.ckpt")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Stopped with 1 of 3 runs finished" in output
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2
    (plain,) = tmp_path.glob("runs/plain*/result.json")
    written = plain.stat().st_mtime_ns

    subprocess.run(arguments, env=environment(), check=True, capture_output=True)
    assert plain.stat().st_mtime_ns == written, "a finished run is not repeated"
    (irmae,) = tmp_path.glob("runs/irmae*/result.json")
    assert [row["epoch"] for row in json.loads(irmae.read_text())["history"]] == list(range(60)), "one curve, no gap"
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 4


def test_other_settings_are_other_runs(tmp_path):
    for gain in ("0.1", "0.5"):
        rank_sweep.main(
            ["--logger", "none", *QUICK, "--gain", gain, "--methods", "ours", "--output-dir", str(tmp_path)]
        )
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2
    synthetic = rank_sweep.main(
        ["--logger", "csv", "--data", "synthetic", *QUICK, "--methods", "ours", "--output-dir", str(tmp_path)]
    )
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 3
    assert len(synthetic) == 1
    assert list(tmp_path.glob("runs/ours*/csv/version_0/metrics.csv"))


@pytest.mark.slow
def test_a_run_killed_after_training_is_measured_and_one_killed_just_before_is_trained_again(tmp_path):
    arguments = ["--logger", "none", *QUICK, "--methods", "ours", "--output-dir", str(tmp_path)]
    (first,) = rank_sweep.main(arguments)
    (path,) = tmp_path.glob("runs/*/result.json")
    trained = path.with_name("trained.json")
    written = trained.stat().st_mtime_ns
    path.unlink()
    assert rank_sweep.main(arguments) == [first], "the same weights, and the same rank curve"
    assert trained.stat().st_mtime_ns == written, "without training"
    path.unlink()
    trained.unlink()
    (again,) = rank_sweep.main(arguments)
    assert {**again, "seconds": None} == {**first, "seconds": None}


def test_the_threshold_of_the_numerical_rank_is_that_of_the_package():
    assert rank_sweep.parse_args([]).variance_rtol == VARIANCE_RTOL
    for taker in (rank_sweep.RankSweep, rank_sweep.AutoencoderEvaluation):
        assert inspect.signature(taker).parameters["variance_rtol"].default == VARIANCE_RTOL


def test_synthetic_data_end_at_their_rank(tmp_path):
    arguments = ["--logger", "none", "--data", "synthetic", "--methods", "ours", "--depths", "4", "--gain", "0.03"]
    (result,) = rank_sweep.main([*arguments, "--output-dir", str(tmp_path)])
    assert result["rank/numerical"] == 8


@pytest.mark.slow
def test_torchrun_runs_the_whole_sweep(tmp_path):
    options = ["--logger", "none", "--devices", "2", "--strategy", "ddp", "--methods", "plain", "ours", *QUICK]
    start = command(tmp_path, *options)
    start[1:1] = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(start, env=environment(), capture_output=True, text=True, check=True, timeout=200)
    rows = results(tmp_path)
    assert [(row["method"], float(row["rank/samples"])) for row in rows] == [("plain", 224), ("ours", 224)]
    assert done.stdout.count("written to") == 1


def test_bad_settings_are_refused(tmp_path):
    def sweep(**settings):
        settings = {"dim": 4} | settings
        return rank_sweep.RankSweep(torch.nn.Identity, None, output_dir=tmp_path, name="bad", **settings)

    with pytest.raises(ValueError, match=r"methods: expected some of .*, got 'vae'"):
        sweep(methods=["vae"])
    with pytest.raises(ValueError, match=r"depths.*: expected depth 0 for 'plain' or one above 0 for the others"):
        sweep(methods=["plain"], depths=[4])
    for name, least, wrong in [
        *(("depths", 0, [0, depth]) for depth in (-2, 1.5)),
        *(("seeds", 0, [0, seed]) for seed in (-1, 0.5)),
        *(("max_epochs", 1, epochs) for epochs in (0, 2.5, float("nan"))),
        *(("dim", 1, dim) for dim in (0, 2.5, None)),
        ("shard", 1, (1, 1.5)),
    ]:
        got = wrong[-1] if isinstance(wrong, list | tuple) else wrong
        told = f"{name}: expected a whole number of {least} or more, got {got!r}"
        with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
            sweep(**{name: wrong})
    with pytest.raises(ValueError, match="dim: expected a whole number of 1 or more, got 0"):
        sweep(methods=["plain", Method("narrow", takes_depth=False, options={"dim": 0})])
    for gain in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"gains: expected positive, finite numbers, got {gain}"):
            sweep(gains=[0.1, gain])
    for rtol in (2, -0.1, float("nan")):
        told = re.escape(f"variance_rtol: expected a number in [0, 1), got {rtol}")
        with pytest.raises(ValueError, match=told):
            sweep(variance_rtol=rtol)
        with pytest.raises(ValueError, match=told):
            rank_sweep.AutoencoderEvaluation(None, tmp_path / "classifier.pt", variance_rtol=rtol)
    with pytest.raises(ValueError, match=r"a gain and a seed, got .*, \[\]"):
        sweep(seeds=[])
    with pytest.raises(ValueError, match="shard: expected"):
        sweep(shard=(3, 2))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"output_dir: expected a folder, got the file .*/file"):
        rank_sweep.RankSweep(torch.nn.Identity, None, dim=4, output_dir=tmp_path / "file", name="bad")
    for cutoff in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"variance_cutoff: expected a positive, finite number, got {cutoff}"):
            sweep(variance_cutoff=cutoff)
    with pytest.raises(ValueError, match="logger: expected one of"):
        sweep(logger="mlflow")
    for options, told in [
        ({"precision": "31"}, "Precision '31' is invalid"),
        ({"devices": "two"}, "`devices` selected with"),
        ({"accelerator": "cpu", "devices": 0}, "not a valid input using cpu"),
        ({"max_epochs": 3}, "multiple values for keyword argument 'max_epochs'"),
    ]:
        with pytest.raises(ValueError, match=f"trainer_options: .*{told}"):
            sweep(trainer_options=options)


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_logger_whose_package_is_missing_is_refused_before_the_first_run(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    told = rf"error: logger: '{package}' needs a package .*: python -m pip install {package}, or take another"
    with pytest.raises(SystemExit, match=told):
        rank_sweep.main(["--logger", package, *QUICK, "--output-dir", str(tmp_path / "sweep")])
    assert not (tmp_path / "sweep").exists()
    sweep = rank_sweep.RankSweep(torch.nn.Identity, None, dim=4, output_dir=tmp_path, name="here", logger="csv")
    assert len(sweep.runs) == 7, "the others do without"


def test_settings_that_no_run_takes_are_told_in_a_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: variance_rtol: expected a number in \[0, 1\), got 2.0$"):
        rank_sweep.main(["--logger", "none", "--variance-rtol", "2", "--output-dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "imagenet"], "argument --data: invalid choice: 'imagenet'"),
        (["--limit-train-batches", "0"], "argument --limit-train-batches: expected a number of batches, or a share"),
        (["--limit-val-batches", "1.5"], "argument --limit-val-batches: expected a number of batches, or a share"),
        *(
            (["--shard", shard], f"argument --shard: expected I/N with I from 1 to N, such as 1/4, got {shard}")
            for shard in ("0/2", "3/2", "x/2", "1", "1/")
        ),
        (["--seeds", "0"], "--seeds: expected 1 or more, got 0"),
        (["--output-dir", __file__], f"--output-dir: expected a folder, got the file {__file__}"),
        (["--num-workers", "-1"], "--num-workers: expected 0 or more, got -1"),
        (["--batch-size", "0"], "--batch-size: expected 1 or more, got 0"),
        (["--gains", "0.3", "--variance-cutoff", "0.1"], "--gains with --variance-cutoff: the cutoff holds for gain 1"),
    ],
)
def test_wrong_flags_are_refused(arguments, told, capsys):
    with pytest.raises(SystemExit, match="2"):
        rank_sweep.parse_args(arguments)
    assert told in capsys.readouterr().err


def test_missing_and_damaged_data_stop_the_sweep_and_keep_what_is_finished(tmp_path):
    arguments = ["--logger", "none", *QUICK, "--methods", "plain", "--output-dir", str(tmp_path)]
    rank_sweep.main(arguments)
    with pytest.raises(SystemExit, match=r"error: .*none: expected a folder of images for each class"):
        rank_sweep.main([*arguments, "--data", "folder", "--data-dir", str(tmp_path / "none")])
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 1
    assert len(results(tmp_path)) == 1


@pytest.mark.parametrize("place", ["a file/below", "/proc", "no" * 200, "a file for runs"])
def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_trained(tmp_path, monkeypatch, place):
    """/proc is there and takes no files; a name that is too long stands for what one may not even look at."""
    (tmp_path / "a file").touch()
    (tmp_path / "a file for runs").mkdir()
    (tmp_path / "a file for runs" / "runs").touch()
    monkeypatch.setattr(rank_sweep.RankSweep, "_attempt", lambda self, run, title: pytest.fail("trained"))
    directory = tmp_path / place
    told = f"error: output_dir: expected a folder to write to, got {directory} ([Errno "
    with pytest.raises(SystemExit, match=f"^{re.escape(told)}.*\\)\nFinished runs are kept"):
        rank_sweep.main(["--logger", "none", *QUICK, "--output-dir", str(directory)])


def test_a_bug_in_the_script_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(self):
        raise FileNotFoundError("no such file, says a bug")

    monkeypatch.setattr(rank_sweep.RankSweep, "run", broken)
    with pytest.raises(FileNotFoundError, match="says a bug"):
        rank_sweep.main(["--logger", "none", "--output-dir", str(tmp_path)])


def test_any_model_shows_the_rank_of_a_layer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    history = monitor_any_model.main(max_epochs=2)
    assert [row["epoch"] for row in history] == [0, 1]
    assert all(1 < row["rank/effective"] < 32 and row["rank/samples"] == 224 for row in history)
    assert f"epoch   2: effective rank {history[1]['rank/effective']:.2f} of 32" in capsys.readouterr().out


@pytest.mark.slow
def test_a_smaller_autoencoder_is_what_the_table_says(tmp_path, capsys):
    arguments = ["--seeds", "1", "--max-epochs", "30", "--more-epochs", "20", "--output-dir", str(tmp_path)]
    rows = shrink_autoencoder.main(arguments)
    models = {row["model"]: row for row in rows}
    plain, low, small = models["plain"], models["low rank"], models["low rank, truncated"]
    rank = small["width"]
    assert plain["width"] == low["width"] == 32 > rank == models["plain, trained narrow"]["width"] >= 2
    # Four 32x32 layers are one; then one becomes a map to the rank with a bias, and the decoder's first is thinner.
    assert low["parameters"] - small["parameters"] == 32 * 32 - (32 * rank + rank) + 128 * (32 - rank)
    assert small["error"] < 1.1 * low["error"], "of low rank already"
    assert models["plain, truncated"]["error"] > 1.5 * plain["error"], "not of low rank"
    for name in ("plain, truncated", "low rank, truncated"):
        trained_on = models[f"{name}, trained on"]
        assert trained_on["error"] < 1.05 * models[name]["error"]
        assert (trained_on["width"], trained_on["parameters"]) == (rank, models[name]["parameters"])
    assert models["plain, truncated, trained on"]["error"] < 0.9 * models["plain, truncated"]["error"], "got back"
    gap = models["low rank, truncated, trained on"]["error"] - plain["error"]
    assert re.search(rf"\| +plain \| +{gap:.3g} \|", capsys.readouterr().out)
    # What was measured as the small one was loaded from the file.
    saved = torch.load(tmp_path / "truncated.pt", weights_only=True)
    assert saved["encoder.linear_bottleneck.encode.weight"].shape == (rank, 32)
    for name in ("shrink.png", "by_rank.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    (traversal,) = tmp_path.glob("latent_traversals/*.png")
    with Image.open(traversal) as picture:
        # The directions, of 64 pixels and a line of 3, and set apart the row between two inputs.
        assert picture.height == (rank + 2) * 67 + 3 + 67 + 3
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(rows) == 8
