"""What is trained to convergence, in which order, and how the report says it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from converged_images import (
    VALIDATION_IMAGES,
    EncoderAndDecoder,
    Images,
    cifar10,
    convolutional,
    digits,
    fashion_mnist,
    mlp,
)
from converged_measures import INVERSE_REGULARIZATIONS, VARIANCE_RTOL

LEARNING_RATE, BATCH_SIZE = 1e-3, 128


@dataclass(frozen=True)
class Setting:
    """What is trained."""

    family: str
    width: int = 64
    depth: int = 0
    gain: float | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        gain = "" if self.gain is None else f"-gain{self.gain:g}"
        return f"{self.family}{self.width}" + (f"-{self.depth}layers{gain}" if self.depth else "")


@dataclass(frozen=True)
class Plan:
    """The images, their network, and the sizes of everything.

    Attributes:
        name: Of the report, and of the folder of the runs.
        title: Of the report.
        about: What the report says of images and network.
        read: Takes the folder of the images.
        network: Takes the width of the latents.
        settings: What is trained, the most telling first.
        telling: How many of them are trained with three seeds before the others have more than one.
        stops: Steps after which all are measured.
        plain_stops: Those of the plain network besides: early stopping is one of the controls.
        cuts: Ranks that the latents of the plain network are cut to, from the last of ``stops`` on.
        longer: Settings that are trained to the last stop of all.
        longest: That stop.
        seeds: Number of seeds.
        draws: How often the labelled images of a few-label probe are drawn.
        command: That trains half of it.
    """

    name: str
    title: str
    about: str
    read: Callable[[Path], Images]
    network: Callable[[int], EncoderAndDecoder]
    settings: Sequence[Setting]
    telling: int
    stops: Sequence[int]
    plain_stops: Sequence[int]
    cuts: Sequence[int]
    longer: Sequence[Setting]
    longest: int
    seeds: int
    draws: int = 10
    command: str = "python benchmarks/converged.py --data-dir DIR --shard 1/2"

    def jobs(self) -> Iterator[tuple[Setting, int, list[int]]]:
        """Setting, seed and stops in the order of what tells most: three seeds make an interval."""
        three, two = range(min(3, self.seeds)), range(min(2, self.seeds))
        telling, others = self.settings[: self.telling], self.settings[self.telling :]

        def short(settings: Sequence[Setting], seeds: range) -> Iterator[tuple[Setting, int, list[int]]]:
            return ((setting, seed, self.stops_of(setting)) for seed in seeds for setting in settings)

        def long(seeds: range) -> Iterator[tuple[Setting, int, list[int]]]:
            return ((setting, seed, [*stops, self.longest]) for setting, seed, stops in short(self.longer, seeds))

        yield from short(self.settings, three[:1])
        yield from short(telling, three[1:])
        yield from short(others, three[1:])
        yield from long(two)
        yield from short(self.settings, range(len(three), self.seeds))
        yield from long(range(len(two), self.seeds))

    def stops_of(self, setting: Setting) -> list[int]:
        """All that are measured, but for the longest."""
        return sorted({*self.stops, *(self.plain_stops if setting == PLAIN else ())})


PLAIN = Setting("plain")
GAINS = {2: (0.03, 0.1), 4: (0.01, 0.03, 0.1, 0.3, 1.0), 8: (0.03, 0.1)}
OURS = {(depth, gain): Setting("ours", depth=depth, gain=gain) for depth, gains in GAINS.items() for gain in gains}
IRMAE = {depth: Setting("irmae", depth=depth) for depth in (2, 4, 8)}
NARROW = {width: Setting("narrow", width) for width in (2, 4, 8, 16, 32)}
FASHION_MNIST = Plan(
    name="converged",
    title="Autoencoders trained for long: is there a best rank?",
    about=f"""Fashion-MNIST: 50,000 images to train on, {VALIDATION_IMAGES:,} of its training images, drawn once, for
validation, its 10,000 test images for what is reported. Encoder of 256 and 128 hidden units with ReLU to latents 64
wide, and back to a sigmoid""",
    read=fashion_mnist,
    network=partial(mlp, 28 * 28, (256, 128)),
    settings=[
        PLAIN,
        *(OURS[4, gain] for gain in (0.03, 0.1)),
        NARROW[16],
        NARROW[8],
        IRMAE[4],
        OURS[4, 0.01],
        OURS[4, 0.3],
        NARROW[32],
        IRMAE[2],
        NARROW[4],
        OURS[4, 1.0],
        *(OURS[depth, gain] for depth in (2, 8) for gain in (0.03, 0.1)),
        IRMAE[8],
        NARROW[2],
    ],
    telling=10,
    stops=(2_000, 10_000, 30_000),
    plain_stops=(4_000, 6_000, 8_000, 15_000, 20_000),
    cuts=(2, 4, 8, 16, 32),
    longer=[PLAIN, OURS[4, 0.03], OURS[4, 0.1], NARROW[16]],
    longest=100_000,
    seeds=5,
)
#: What is most telling, at fewer stops; all of it to the first two before any to the last.
CIFAR10 = Plan(
    name="converged_cifar10",
    title="Convolutional autoencoders on CIFAR-10 trained for long: is there a best rank?",
    about="""CIFAR-10: 45,000 images to train on, 5,000 of its training images, drawn once, for validation, its 10,000
test images for what is reported, all as JPEG files. IRMAE's network in small: four convolutions of stride 2 with 8, 16,
32 and 64 channels (IRMAE has four times as many) to latents 64 wide (128), and back to a sigmoid""",
    read=cifar10,
    network=partial(convolutional, 8),
    settings=[
        PLAIN,
        *(OURS[4, gain] for gain in (0.03, 0.1)),
        NARROW[16],
        NARROW[8],
        IRMAE[4],
        OURS[4, 0.3],
        NARROW[32],
        *(OURS[depth, 0.1] for depth in (2, 8)),
        *(IRMAE[depth] for depth in (2, 8)),
    ],
    telling=8,
    stops=(2_000, 10_000),
    plain_stops=(4_000, 6_000, 20_000),
    cuts=(4, 8, 16, 32),
    longer=[PLAIN, OURS[4, 0.03], OURS[4, 0.1], NARROW[16]],
    longest=30_000,
    seeds=3,
    command="python benchmarks/converged.py --data cifar10 --data-dir DIR --shard 1/2",
)
DIGITS = replace(
    FASHION_MNIST,
    about="Digits. An MLP",
    read=digits,
    network=partial(mlp, 64, (32, 16)),
    settings=[PLAIN, OURS[4, 0.1], NARROW[4], IRMAE[4]],
    telling=4,
    stops=(40,),
    plain_stops=(20, 30),
    cuts=(4,),
    longer=[PLAIN],
    longest=50,
    seeds=1,
    draws=1,
)
PLANS = {"fashion_mnist": FASHION_MNIST, "cifar10": CIFAR10, "digits": DIGITS}


def missing(plan: Plan, rows: Sequence[dict[str, Any]]) -> str:
    """How much of it is not there yet."""
    wanted = {(*asdict(setting).values(), seed, stop) for setting, seed, stops in plan.jobs() for stop in stops}
    left = wanted - {tuple(row[key] for key in (*asdict(PLAIN), "seed", "steps")) for row in rows}
    if not left:
        return f"All {len(wanted)} stops of all runs are here."
    runs = {entry[:-1] for entry in left}
    return f"**Not finished: {len(left)} of {len(wanted)} stops, of {len(runs)} runs, are missing.**"


def settings_of(plan: Plan) -> str:
    """What the report says of how it was done."""
    stops = ", ".join(f"{stop:,}" for stop in plan.stops)
    return f"""{plan.about}; Adam, learning rate {LEARNING_RATE:g}, batch {BATCH_SIZE}, no schedule, no
decay, squared error summed over pixels; seeds 0 to {plan.seeds - 1}, measured after {stops} steps, some settings after
{plan.longest:,}. With one seed all settings see the same batches, and those of one width start from the same encoder
and decoder. Effective rank: exponential of the entropy of the *singular values* of validation latents; numerical rank:
directions with more than {VARIANCE_RTOL:g} of the largest *variance*. Probes: test accuracy of logistic regression on
training latents, 10 draws of the labelled images (all: 1,000 a class, one draw), strength chosen on all labels of the
validation images from {len(INVERSE_REGULARIZATIONS)} between {INVERSE_REGULARIZATIONS[0]:g} and
{INVERSE_REGULARIZATIONS[-1]:g}; latents standardized: all principal directions to variance 1, also the smallest; as
they are: centred and divided by one number. Samples: Fréchet distance to the test images on features of a small
convolutional classifier, one for all runs, of 10,000 samples from a Gaussian and from a mixture of ten fitted to
training latents in the directions that the numerical rank counts. Truncated: latents of the plain network cut to their
leading directions, no training after. Trained with `{plan.command}` and `--shard 2/2` side by side."""
