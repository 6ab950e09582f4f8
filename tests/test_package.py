"""What importing the package brings, and what it does not."""

import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import rank_sweep

import lightning_rank
import lightning_rank.compression
import lightning_rank.functional
import lightning_rank.metrics
import lightning_rank.sampling
import lightning_rank.traversal
from rank_trainer import RankSweep


def test_the_public_names_are_those_of_the_contract():
    assert set(lightning_rank.__all__) == {
        "DepthScaledLR",
        "EffectiveRankMonitor",
        "LatentTraversal",
        "LinearBottleneck",
        "LinearBottleneckMixin",
        "attach_linear_bottleneck",
        "collapse_linear_bottleneck",
        "depth_scaled_param_groups",
        "load_truncated",
        "merge_linear_bottleneck",
        "truncate_linear_bottleneck",
    }
    assert set(lightning_rank.metrics.__all__) == {
        "ConditionNumber",
        "DirectionsForVariance",
        "EffectiveRank",
        "LatentSpectrum",
        "NumericalRank",
        "ParticipationRatio",
        "PowerLawExponent",
        "RankMe",
        "RowStatistics",
        "StableRank",
        "synchronize",
    }
    assert set(lightning_rank.sampling.__all__) == {"LatentSampler"}
    assert set(lightning_rank.compression.__all__) == {
        "Truncation",
        "load_truncated",
        "measure_by_rank",
        "truncate_linear_bottleneck",
    }
    assert set(lightning_rank.traversal.__all__) == {
        "image_grid",
        "interpolate_latents",
        "traverse_principal_directions",
    }
    parts = [
        lightning_rank.compression,
        lightning_rank.functional,
        lightning_rank.metrics,
        lightning_rank.sampling,
        lightning_rank.traversal,
    ]
    for package in (lightning_rank, *parts):
        assert all(hasattr(package, name) for name in package.__all__)


def test_the_threshold_of_the_numerical_rank_is_one_everywhere():
    takers = [
        lightning_rank.functional.numerical_rank,
        lightning_rank.metrics.NumericalRank,
        lightning_rank.EffectiveRankMonitor,
        lightning_rank.truncate_linear_bottleneck,
        lightning_rank.sampling.LatentSampler,
        RankSweep,
    ]
    assert rank_sweep.parse_args([]).variance_rtol == 1e-3
    defaults = {taker.__name__: inspect.signature(taker).parameters["variance_rtol"].default for taker in takers}
    assert defaults == dict.fromkeys(defaults, 1e-3)


def test_the_version_is_in_one_place():
    assert version("lightning-rank") == lightning_rank.__version__


def test_importing_it_imports_no_extra():
    # What lightning and torchmetrics import where it is installed is theirs, and is imported anew if we ask for it.
    script = (
        "import sys, torch, lightning.pytorch, torchmetrics\n"
        "extras = {'PIL', 'matplotlib', 'sklearn', 'tensorboard', 'torchvision', 'wandb'}\n"
        "for name in [name for name in sys.modules if name.split('.')[0] in extras]: sys.modules[name] = None\n"
        "import lightning_rank, lightning_rank.sampling, lightning_rank.traversal\n"
        "assert not {name.split('.')[0] for name, found in sys.modules.items() if found is not None} & extras"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_the_address_of_the_repository_is_one():
    root = Path(__file__).parents[1]
    address = r"https://[\w.]+/lightning-rank/[\w-]+"
    assert len(set(re.findall(address, (root / "pyproject.toml").read_text()))) == 1
    texts = [root / "README.md", root / "CONTRIBUTING.md", root / "CITATION.cff"]
    texts += [page for room in ("docs", "examples", "lightning_rank") for page in (root / room).rglob("*.[mp][dy]")]
    elsewhere = [path for path in texts if re.search(address, path.read_text())]
    assert elsewhere == []
