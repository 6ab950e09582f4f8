"""What is measured of the latents of an autoencoder at a stop of its training."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from converged_images import BATCH_SIZE, Images
from torch import Tensor, nn

from lightning_rank.functional import (
    effective_rank,
    numerical_rank,
    principal_deviations,
    principal_directions,
    row_moments,
)
from lightning_rank.sampling import LatentSampler
from rank_trainer.evaluation import sample_quality
from rank_trainer.evaluation.probes import Labelled, linear_probe

#: Of the numerical rank and of the subspace of the samples, relative to the largest variance.
VARIANCE_RTOL = 1e-3
#: Labels a class that probes get; the last stands for all, and is drawn once.
LABELS = {"10": 10, "100": 100, "all": 1000}
#: Deviation, relative to the largest, below which a direction of float32 latents is rounding.
ROUNDING = 1e-5
#: From strong to weak.
INVERSE_REGULARIZATIONS = tuple(10.0**k for k in range(-5, 3))
#: Numbers of leading directions that latents are cut to, for the curve of the error.
CUTS = (1, 2, 4, 8, 16, 32)
COMPONENTS, MIXTURE_ROWS = 10, 20_000

Map = Callable[[Tensor], Tensor]


class Measures:
    """Rank, errors, accuracies of probes and distances of samples, the same yardstick for all runs.

    Args:
        images: The data; labels are those of training images, strengths of probes are chosen on validation, and what is
            reported is of the test.
        classifier: File that keeps the classifier whose features samples are compared by.
        draws: How often the labelled images of a few-label probe are drawn.
    """

    def __init__(self, images: Images, classifier: Path, draws: int = 10) -> None:
        self.images, self.draws = images, draws
        features = sample_quality.train_classifier(lambda: images.batches("train"), torch.device("cpu"), classifier)
        self.distance = sample_quality.classifier_distance(features)
        with torch.no_grad():
            for batch, _ in images.batches("test"):
                self.distance.update(batch, real=True)
            correct = [(features(batch).argmax(1) == labels).float() for batch, labels in images.batches("test")]
        self.classifier_accuracy = float(torch.cat(correct).mean())

    @torch.no_grad()
    def __call__(self, encode: Map, decode: Map, seed: int) -> dict[str, Any]:
        """Measure one autoencoder.

        Args:
            encode: Images to latents, row by row.
            decode: Back.
            seed: Of the labels that are drawn, the starts of fits and the samples.
        """
        splits = {
            name: (torch.cat([encode(batch) for batch in images.split(BATCH_SIZE)]), labels)
            for name, (images, labels) in self.images.splits.items()
        }
        errors = {f"{name}/error": self._error(name, latents, decode) for name, (latents, _) in splits.items()}
        train, *held_out = (latents for latents, _ in splits.values())
        if not all(latents.isfinite().all() for latents in (train, *held_out)):
            return errors | {"diverged": True}
        deviations = principal_deviations(row_moments(held_out[0]))
        result = errors | {
            "rank/effective": float(effective_rank(deviations)),
            "rank/numerical": int(numerical_rank(deviations, variance_rtol=VARIANCE_RTOL)),
            "spectrum": [float(f"{value:.5g}") for value in deviations],
        }
        if numerical_rank(principal_deviations(row_moments(train)), variance_rtol=VARIANCE_RTOL) == 0:
            return result | {"collapsed": True}
        result |= {f"cut/{rank}/error": error for rank, error in self._errors_by_rank(splits, decode)}
        return result | self._accuracies(splits, seed) | self._distances(train, decode, seed)

    def _error(self, split: str, latents: Tensor, decode: Map) -> float:
        pairs = zip(self.images.splits[split][0].split(BATCH_SIZE), latents.split(BATCH_SIZE), strict=True)
        return math.fsum(float((decode(z) - x).double().square().sum()) for x, z in pairs) / len(latents)

    def _errors_by_rank(self, splits: dict[str, Labelled], decode: Map) -> Iterator[tuple[int, float]]:
        """Test error with the latents cut to their leading directions, as one training gives it."""
        (train, _), (test, _) = splits["train"], splits["test"]
        for rank in (rank for rank in CUTS if rank < train.shape[1]):
            cut, uncut = truncated(lambda z: z, decode, train, rank)
            yield rank, self._error("test", cut(test), uncut)

    def _accuracies(self, splits: dict[str, Labelled], seed: int) -> dict[str, Any]:
        moments = row_moments(splits["train"][0])
        deviations, directions = principal_directions(moments)
        used = deviations > ROUNDING * deviations[0]
        ways = {
            "standardized": directions[:, used] / deviations[used],
            "as_is": directions / deviations.square().mean().sqrt(),  # one number for all
        }
        result: dict[str, Any] = {}
        for way, weights in ways.items():
            train, val, test = (
                (((latents.double() - moments.mean) @ weights).float(), labels) for latents, labels in splits.values()
            )
            for name, per_class in LABELS.items():
                found = [
                    linear_probe(train, val, test, per_class, 1000 * seed + draw, False, INVERSE_REGULARIZATIONS)
                    for draw in range(1 if name == "all" else self.draws)
                ]
                if None not in found:
                    result |= {f"probe/{name}/{way}": fmean(found), f"probe/{name}/{way}/draws": found}
        return result

    def _distances(self, latents: Tensor, decode: Map, seed: int) -> dict[str, float]:
        result = {}
        count = int(self.distance.real_features_num_samples)
        for kind, rows in {"gaussian": latents, "mixture": latents[:MIXTURE_ROWS]}.items():
            torch.manual_seed(seed)
            sampler = LatentSampler(kind=kind, n_components=COMPONENTS, variance_rtol=VARIANCE_RTOL).fit(rows)
            self.distance.reset()  # forgets samples, not the test images
            for batch in sampler.sample(count).split(BATCH_SIZE):
                self.distance.update(self.images.for_features(decode(batch).clamp(0, 1)), real=False)
            result[f"frechet/classifier/{kind}"] = float(self.distance.compute())
        return result


def truncated(encode: Map, decode: Map, latents: Tensor, rank: int) -> tuple[Map, Map]:
    """An autoencoder whose latents are the coordinates along the leading directions of the given ones."""
    moments = row_moments(latents)
    mean = moments.mean.float()
    directions = principal_directions(moments)[1][:, :rank].float()
    return lambda x: (encode(x) - mean) @ directions, lambda z: decode(mean + z @ directions.T)


def both_ways(module: nn.Module) -> tuple[Map, Map]:
    """Encoder with bottleneck, and decoder."""
    encoder, bottleneck, decoder = module
    return lambda x: bottleneck(encoder(x)), decoder
