"""What is measured of an autoencoder once it is trained, all of it on one latent: the output of the bottleneck."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_rank.compression import measure_by_rank
from lightning_rank.functional import VARIANCE_RTOL
from lightning_rank.functional.rank import check_variance_rtol
from lightning_rank.nn import LinearBottleneck
from lightning_rank.nn._submodules import find_submodule
from lightning_rank.sampling import LatentSampler
from lightning_rank.traversal import interpolate_latents
from rank_trainer.evaluation import pictures, sample_quality
from rank_trainer.evaluation.probes import linear_probe

#: Labels a class that the linear probes get; ``None`` is all of them.
LABELS_PER_CLASS = {"all": None, "100": 100, "10": 10}
#: Samples that are drawn at most, and compared with as many test images.
MAX_SAMPLES = 10_000
#: Gaussians of a mixture, and training latents that it is fitted to at most, for the time that it takes.
COMPONENTS, MAX_MIXTURE_ROWS = 10, 20_000
COLUMNS = 8

Limit = int | float | None


@dataclass(frozen=True)
class Encoded:
    """A split as the module sees it.

    Attributes:
        latents: Shape ``(n, dim)``.
        labels: Shape ``(n,)``, if the data has some.
        error: Squared error of the reconstruction, summed over features, averaged over samples.
    """

    latents: Tensor
    labels: Tensor | None
    error: float


class AutoencoderEvaluation:
    """Measures a trained autoencoder and draws what it makes.

    Test error, also with the latents cut to 1, 2, 4, ... directions; accuracy of linear probes with all labels, 100 and
    10 a class; distance of samples from test images, the samples being decoded from a Gaussian and from a mixture of
    them, fitted to training latents in the subspace of their numerical rank; grids of reconstructions, samples and
    interpolations. Without labels there are neither probes nor distances, of vectors that are no images no grids.

    The module maps a batch of inputs to their reconstruction, and its child ``decoder`` latents ``(B, dim)`` to images.

    Args:
        datamodule: Its three loaders give batches ``[inputs]`` or ``[inputs, labels]``.
        classifier: File that keeps the classifier whose features are compared, one for all runs on this data.
        variance_rtol: Threshold of the numerical rank, relative to the largest variance.
        limits: Of ``"train"``, ``"val"`` and ``"test"``, how many batches count, or which share of them.
    """

    def __init__(
        self,
        datamodule: LightningDataModule,
        classifier: str | Path,
        variance_rtol: float = VARIANCE_RTOL,
        limits: dict[str, Limit] | None = None,
    ) -> None:
        check_variance_rtol(variance_rtol)
        self.datamodule = datamodule
        self.classifier = Path(classifier)
        self.variance_rtol = variance_rtol
        self.limits = limits or {}
        self._reference: tuple[str, FrechetInceptionDistance] | None = None

    @torch.no_grad()
    def __call__(self, module: LightningModule, directory: Path, seed: int = 0) -> dict[str, float]:
        """Measure, and write the grids.

        Args:
            module: The trained autoencoder, on the device to use.
            directory: Where the grids go.
            seed: Of what is drawn: labels, starts of fits, samples.
        """
        self.datamodule.setup("fit")
        self.datamodule.setup("test")
        module.eval()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            train, val, test = (encode(module, self._batches(split)) for split in ("train", "val", "test"))
            result = {"test/error": test.error}
            if not train.latents.isfinite().all() or (train.latents == train.latents[0]).all():
                return result  # diverged or collapsed: nothing to classify, nothing to sample
            result |= self._errors_by_rank(module, train.latents)
            samplers = {"gaussian": LatentSampler(variance_rtol=self.variance_rtol).fit(train.latents)}
            if len(train.latents) >= COMPONENTS:
                mixture = LatentSampler(kind="mixture", n_components=COMPONENTS, variance_rtol=self.variance_rtol)
                samplers["mixture"] = mixture.fit(train.latents[:MAX_MIXTURE_ROWS])
            result["samples/rank"] = samplers["gaussian"].directions.shape[1]
            if test.labels is not None:
                result |= self._accuracies(train, val, test, seed)
                result |= self._distances(module, samplers)
            self._draw(module, samplers, directory)
        return result

    def _batches(self, split: str) -> Iterator[list[Tensor]]:
        return limited(getattr(self.datamodule, f"{split}_dataloader")(), self.limits.get(split))

    def _errors_by_rank(self, module: LightningModule, latents: Tensor) -> dict[str, float]:
        """What the test error would be with fewer directions of the training latents."""
        if not isinstance(find_submodule(module, "linear_bottleneck", "module"), LinearBottleneck):
            return {}  # cut already
        ranks = itertools.takewhile(lambda rank: rank < latents.shape[1], (2**k for k in itertools.count()))
        errors = measure_by_rank(module, latents, lambda cut: encode(cut, self._batches("test")).error, ranks)
        return {f"cut/{rank}/error": error for rank, error in errors.items()}

    def _accuracies(self, train: Encoded, val: Encoded, test: Encoded, seed: int) -> dict[str, float]:
        splits = [(split.latents, split.labels) for split in (train, val, test)]
        accuracies = {name: linear_probe(*splits, per_class, seed) for name, per_class in LABELS_PER_CLASS.items()}
        return {f"probe/{name}": accuracy for name, accuracy in accuracies.items() if accuracy is not None}

    def _distances(self, module: LightningModule, samplers: dict[str, LatentSampler]) -> dict[str, float]:
        if self._reference is None:
            self._reference = self._make_reference(module.device)
        name, distance = self._reference
        count = int(distance.real_features_num_samples)
        result: dict[str, float] = {"samples/count": count}
        for kind, sampler in samplers.items():
            distance.reset()  # forgets samples, not the test images
            for latents in sampler.sample(count).split(512):
                distance.update(_for_features(decode(module, latents)), real=False)
            result[f"{name}/{kind}"] = float(distance.compute())
        return result

    def _make_reference(self, device: torch.device) -> tuple[str, FrechetInceptionDistance]:
        """The distance, with the test images in it: the same for all runs."""
        images, _ = next(self._batches("test"))
        name, distance = sample_quality.INCEPTION, sample_quality.inception_distance() if images.ndim == 4 else None
        if distance is None:
            classifier = sample_quality.train_classifier(
                lambda: ([_for_features(images), labels] for images, labels in self._batches("train")),
                device,
                self.classifier,
            )
            name, distance = sample_quality.CLASSIFIER, sample_quality.classifier_distance(classifier)
        distance = distance.to(device)
        seen = 0
        for images, _ in self._batches("test"):
            if seen < MAX_SAMPLES:
                distance.update(_for_features(images[: MAX_SAMPLES - seen].to(device)), real=True)
                seen += len(images)
        return name, distance

    def _draw(self, module: LightningModule, samplers: dict[str, LatentSampler], directory: Path) -> None:
        inputs = next(self._batches("test"))[0][: 4 * COLUMNS]
        shape = inputs.shape[1:] if inputs.ndim == 4 else getattr(self.datamodule, "image_shape", None)
        if shape is None:
            return

        def save(name: str, flat: Iterable[Tensor]) -> None:
            pictures.save_grid([row.cpu().reshape(-1, *shape) for row in flat], directory / f"{name}.png")

        encoded = encode(module, iter([[inputs]]))
        reconstructions = decode(module, encoded.latents)
        pairs = zip(inputs.split(COLUMNS), reconstructions.split(COLUMNS), strict=True)
        save("reconstructions", itertools.chain(*pairs))
        for kind, sampler in samplers.items():
            save(f"samples_{kind}", decode(module, sampler.sample(4 * COLUMNS)).split(COLUMNS))
        half = min(4, len(inputs) // 2)
        pairs = zip(encoded.latents[:half], encoded.latents[half:], strict=False)
        rows = [decode(module, interpolate_latents(a, b, COLUMNS)) for a, b in pairs]
        if rows:
            save("interpolations", rows)


def limited(loader: DataLoader, limit: Limit) -> Iterator[list[Tensor]]:
    """The batches that count: so many (int), a share of them (float) but at least one, or all (``None``)."""
    return itertools.islice(loader, max(1, int(limit * len(loader))) if isinstance(limit, float) else limit)


@torch.no_grad()
def encode(module: LightningModule, batches: Iterator[list[Tensor]]) -> Encoded:
    """Latents, labels and reconstruction error of some batches."""
    latents: list[Tensor] = []
    labels: list[Tensor] = []
    error = torch.zeros((), dtype=torch.float64)
    bottleneck = find_submodule(module, "linear_bottleneck", "module")  # truncated or not
    hook = bottleneck.register_forward_hook(lambda *call: latents.append(call[-1].float().cpu()))
    try:
        for inputs, *rest in batches:
            x = inputs.to(module.device, module.dtype)
            error += (module(x) - x).double().square().sum().cpu()
            labels.extend(rest)
    finally:
        hook.remove()
    rows = torch.cat(latents)
    if rows.ndim != 2:
        raise ValueError(f"module: expected latents of shape (B, dim), got (B, {', '.join(map(str, rows.shape[1:]))})")
    return Encoded(rows, torch.cat(labels) if labels else None, float(error / len(rows)))


def decode(module: LightningModule, latents: Tensor) -> Tensor:
    """What the decoder makes of latents, cut to [0, 1] as images are."""
    return module.decoder(latents.to(module.device, module.dtype)).float().clamp(0, 1)


def _for_features(images: Tensor) -> Tensor:
    """Grey images in three channels, as Inception and, for the sake of one path, the classifier take them."""
    return images.expand(-1, 3, -1, -1) if images.ndim == 4 and images.shape[1] == 1 else images
