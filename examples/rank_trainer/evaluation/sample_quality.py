"""How far the distribution of samples is from that of test images.

The measure is the Fréchet distance of Gaussians fitted to features of both, by torchmetrics. With features of Inception
it is the FID (Heusel et al. 2017, arXiv 1706.08500). Its weights are a download; where they cannot be had, features of
a small classifier trained on the same training split take their place. The two are different scales: a distance of
this kind compares runs of one sweep and nothing else, and goes by another name everywhere.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance

from rank_trainer.files import replacing

#: Names of the measure, by the features that it is taken of.
INCEPTION, CLASSIFIER = "fid/inception", "frechet/classifier"
FEATURES = 64
PASSES = 20
BATCH_SIZE = 128
# Test images stay in it from run to run, inputs are in [0, 1], and one process measures while the others wait.
OPTIONS = {"reset_real_features": False, "normalize": True, "sync_on_compute": False}


def inception_distance() -> FrechetInceptionDistance | None:
    """The FID, or ``None`` where torch-fidelity or its weights cannot be had."""
    try:
        return FrechetInceptionDistance(**OPTIONS)
    except ModuleNotFoundError as error:  # python -m pip install "torchmetrics[image]"
        if error.name is not None:
            raise  # it is not torchmetrics that misses torch-fidelity
        return None
    except (OSError, RuntimeError) as error:
        print(f"no FID: the weights of Inception cannot be had ({error}); {CLASSIFIER} takes its place")
        return None


def classifier_distance(classifier: nn.Sequential) -> FrechetInceptionDistance:
    """The same distance, of the features of a classifier by :func:`train_classifier`."""
    features = classifier[0]
    features.num_features = FEATURES
    return FrechetInceptionDistance(features, **OPTIONS)


def train_classifier(batches: Callable[[], Iterable[list[Tensor]]], device: torch.device, path: Path) -> nn.Sequential:
    """Train a small classifier, or take the one that was trained before: a sweep needs one for all its runs.

    Args:
        batches: Makes a pass over training batches ``[images, labels]``, of vectors or of images of 28x28 and more.
        device: Where to train.
        path: Where it is kept.

    Returns:
        Two children: the features, and their linear classifier.
    """

    def one_pass() -> Iterator[list[Tensor]]:
        torch.manual_seed(0)  # where only some batches count, the same ones every time
        return _rebatched(batches(), BATCH_SIZE)

    with torch.enable_grad(), torch.random.fork_rng():
        images = next(one_pass())[0]
        classes = 1 + max(int(labels.max()) for _, labels in one_pass())
        torch.manual_seed(0)
        classifier = nn.Sequential(_features(images), nn.Linear(FEATURES, classes)).to(device)
        if path.exists():
            classifier.load_state_dict(torch.load(path, weights_only=True, map_location=device))
            return classifier.eval()
        optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
        for _ in range(PASSES):
            for images, labels in one_pass():
                loss = F.cross_entropy(classifier(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        torch.save(classifier.state_dict(), partial)
    return classifier.eval()


def _rebatched(batches: Iterable[list[Tensor]], size: int) -> Iterator[list[Tensor]]:
    """The same samples, ``size`` at a time: the classifier does not depend on how the autoencoder was trained."""
    kept: list[Tensor] = []
    for batch in batches:
        kept = [torch.cat(parts) for parts in zip(kept, batch, strict=True)] if kept else list(batch)
        while len(kept[0]) >= size:
            yield [part[:size] for part in kept]
            kept = [part[size:] for part in kept]
    if kept and len(kept[0]):
        yield kept


def _features(images: Tensor) -> nn.Sequential:
    if images.ndim == 2:
        return nn.Sequential(nn.Linear(images.shape[1], 128), nn.ReLU(), nn.Linear(128, FEATURES), nn.ReLU())
    features = nn.Sequential()
    for narrow, wide in itertools.pairwise((images.shape[1], 32, 64, 128)):
        features.extend([nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.ReLU()])
    return features.extend([nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 128, FEATURES), nn.ReLU()])
