"""Linear autoencoders on data of known rank, many trained at once.

A model is encoder, :class:`LinearBottleneck` and decoder in an ``nn.Sequential``. Models of one depth train together:
their parameters are stacked, ``torch.func.vmap`` runs the modules over the stacks, and one optimizer of ``torch.optim``
steps the stacks. SGD, Adam and their kin act on each entry alone, so that every model trains as it would by itself,
to rounding; ``tests/test_linear_autoencoders.py`` compares.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Optimizer

from lightning_rank import LinearBottleneck, depth_scaled_param_groups
from lightning_rank.functional import numerical_rank, principal_deviations, row_moments
from lightning_rank.optim.param_groups import Multiplier
from rank_trainer.data import TensorDataModule, low_rank

FEATURES, DIM, BATCH = 64, 32, 128
SPECTRA = {
    "1 to 1/4": lambda rank: torch.linspace(1, 0.25, rank),
    "1 to 0.1, geometric": lambda rank: torch.logspace(0, -1, rank),
    "all 1": lambda rank: torch.ones(rank),
    "1 to 1e-3, geometric": lambda rank: torch.logspace(0, -3, rank),
}


@dataclass(frozen=True)
class Trial:
    """One model and its data."""

    rank: int
    depth: int
    seed: int
    gain: float = 0.03
    init: str = "orthogonal"
    bias: bool = False
    noise: float = 0.05
    spectrum: str = "1 to 1/4"

    def make_model(self) -> nn.Sequential:
        """Encoder, linear bottleneck, decoder."""
        torch.manual_seed(self.seed)
        bottleneck = LinearBottleneck(DIM, self.depth, gain=self.gain, init=self.init)
        return nn.Sequential(nn.Linear(FEATURES, DIM, self.bias), bottleneck, nn.Linear(DIM, FEATURES, self.bias))

    def make_data(self) -> TensorDataModule:
        """4096 rows to train on and as many held out."""
        # Not the seed of the model, whose initial weights would be drawn from the same numbers.
        return low_rank(SPECTRA[self.spectrum](self.rank), FEATURES, self.noise, seed=1000 + self.seed)


class Stack:
    """Models of one shape as one: each parameter is the stack of theirs.

    Args:
        models: The models, equal but for the values of their parameters.
        train: Training rows of each, shape ``(models, rows, features)``.
        held_out: The same of rows not trained on.
    """

    def __init__(self, models: Sequence[nn.Sequential], train: Tensor, held_out: Tensor) -> None:
        self.model = models[0]
        self.parameters, _ = stack_module_state(list(models))
        self.train_rows, self.held_out = train, held_out

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> "Stack":
        """The models of some trials of one depth on their data."""
        tensors = [(module.train.tensors[0], module.val.tensors[0]) for module in map(Trial.make_data, trials)]
        train, held_out = map(torch.stack, zip(*tensors, strict=True))
        return cls([trial.make_model() for trial in trials], train, held_out)

    @classmethod
    def trained(
        cls, trials: Sequence[Trial], make_optimizer: Callable[..., Optimizer], lr: float, steps: int, **options: Any
    ) -> "Stack":
        """The models of some trials after training; ``options`` are those of :meth:`param_groups`."""
        stack = cls.of(trials)
        for _ in stack.train(make_optimizer(stack.param_groups(lr, **options)), steps):
            pass
        return stack

    def __call__(self, rows: Tensor, stop: int | None = None) -> Tensor:
        """Output of each model, or of its first ``stop`` children, for rows of its own."""
        part = self.model[:stop]
        names = {name for name, _ in part.named_parameters()}
        parameters = {name: stacked for name, stacked in self.parameters.items() if name in names}
        return vmap(lambda own, own_rows: functional_call(part, own, (own_rows,)))(parameters, rows)

    def param_groups(self, lr: float, *, multiplier: Multiplier = "inverse_depth", weight_decay: float = 0.0):
        """Those of :func:`depth_scaled_param_groups`, with stacks for parameters and the biases undecayed."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups: list[dict[str, Any]] = []
        for group in depth_scaled_param_groups(self.model, lr, multiplier=multiplier, weight_decay=weight_decay):
            weights, biases = ([p for p in group["params"] if (p.ndim == 1) is bias] for bias in (False, True))
            groups.append({**group, "params": weights})
            if biases:
                groups.append({**group, "params": biases, "name": "biases", "weight_decay": 0.0})
        for group in groups:
            group["params"] = [self.parameters[names[id(parameter)]] for parameter in group["params"]]
        return groups

    def losses(self, rows: Tensor) -> Tensor:
        """Squared error of each model, summed over features and averaged over its rows."""
        return (self(rows) - rows).square().sum(2).mean(1)

    def train(self, optimizer: Optimizer, steps: int, scheduler: Any = None) -> Iterator[int]:
        """Train on random batches, giving the number of steps done after each."""
        generator = torch.Generator().manual_seed(0)
        models, rows, _ = self.train_rows.shape
        for step in range(1, steps + 1):
            drawn = torch.randint(rows, (models, BATCH, 1), generator=generator)
            loss = self.losses(self.train_rows.take_along_dim(drawn, 1)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            yield step

    @torch.no_grad()
    def deviations(self) -> Tensor:
        """Standard deviations of the held-out latents along their principal directions, shape ``(models, DIM)``."""
        latents = self(self.held_out, stop=2)
        return torch.stack([principal_deviations(row_moments(rows)) for rows in latents])

    def ranks(self) -> Tensor:
        """Numerical rank of the held-out latents of each; 0 where they are not finite."""
        return numerical_rank(self.deviations())

    @torch.no_grad()
    def singular_values(self) -> Tensor:
        """Singular values of the map from end to end, biases aside, shape ``(models, features)``."""
        axes = torch.eye(self.held_out.shape[2]).to(self.held_out).expand(len(self.held_out), -1, -1)
        return torch.linalg.svdvals(self(axes) - self(torch.zeros_like(axes)))

    @torch.no_grad()
    def measure(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """What came out, a row a trial: rank, error over the best of the data's rank, variance ratio after it."""
        deviations, ranks, errors = self.deviations(), self.ranks(), self.losses(self.held_out)
        rows = []
        for index, trial in enumerate(trials):
            best = principal_residual(self.train_rows[index], self.held_out[index], trial.rank)
            ratio = (deviations[index, trial.rank] / deviations[index, 0]).square()
            row = {**vars(trial), "found": ranks[index].item(), "excess": (errors[index] / best).item()}
            rows.append(row | {"variance_ratio": ratio.item()})
        return rows


def principal_residual(train: Tensor, held_out: Tensor, rank: int) -> Tensor:
    """Squared error on held-out rows of the projection on the first principal axes of the training rows."""
    axes = torch.linalg.svd(train, full_matrices=False).Vh[:rank]
    return (held_out - held_out @ axes.T @ axes).square().sum(1).mean()
