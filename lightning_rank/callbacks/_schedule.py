"""When rows are wanted: every so many validations, training epochs or training steps."""

from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_rank.callbacks._checks import check_choice, check_least
from lightning_rank.callbacks._observer import LayerObserver
from lightning_rank.callbacks._samples import no_validation

Stage = Literal["validate", "train"]


class ScheduledObserver(LayerObserver):
    """Observes every so many validations or training epochs of ``fit``, windows of training steps, and other stages.

    Args:
        stage: ``"validate"``, or ``"train"`` for training epochs although there is validation data.
        every_n_epochs: How many of them make one that is wanted.
        every_n_train_steps: Length of a window, which takes the place of the training epoch; ``None`` for no windows.
        options: Of :class:`LayerObserver`.
    """

    def __init__(
        self, layers: list[str], *, stage: Stage, every_n_epochs: int, every_n_train_steps: int | None, **options: Any
    ) -> None:
        check_choice("stage", stage, Stage)
        check_least("every_n_epochs", every_n_epochs, 1)
        if every_n_train_steps is not None:
            check_least("every_n_train_steps", every_n_train_steps, 1)
        super().__init__(layers, **options)
        self.stage = stage
        self.every_n_epochs = every_n_epochs
        self.every_n_train_steps = every_n_train_steps
        self._window = 0
        self._said: set[str] = set()

    def _next_validation(self) -> int:
        """Number of the validation that begins, from 1, counted through all fits that make one run."""
        raise NotImplementedError

    def _awaited(self, trainer: Trainer, split: str) -> bool:
        """Whether somebody needs a split to be observed that is not due."""
        raise NotImplementedError

    def _wants(self, trainer: Trainer, split: str) -> bool:
        if split == "train":
            return self.every_n_train_steps is not None or self._wants_epoch(trainer)
        if split == "sanity":
            return self.stage == "validate"
        if split == "test" or trainer.state.fn != "fit":
            return True
        if self.stage != "validate":
            return False
        return self._next_validation() % self.every_n_epochs == 0 or self._awaited(trainer, split)

    def _wants_epoch(self, trainer: Trainer) -> bool:
        """Whether this training epoch is wanted: because it was said, or for want of validations."""
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0 or self._awaited(trainer, "train")
        if self.stage == "train":
            return due
        if no_validation(trainer):
            self._say_once(
                rank_zero_info,
                "there is no validation data, so it monitors the training batches, as rank/train/...; their latents "
                "come from weights that change during the epoch. Where the data have no end, pass every_n_train_steps",
            )
            return due
        return False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first training batch, in the middle of a window or an epoch too: count steps from here on."""
        self._window = trainer.global_step // (self.every_n_train_steps or 1)
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a training epoch: drop old rows, take in new ones; not where windows of steps count."""
        if self.every_n_train_steps is None:
            self._begin(trainer, "train")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a training step: end the window of steps if it is full, or if somebody will not wait for that."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.every_n_train_steps is None:
            return
        window = trainer.global_step // self.every_n_train_steps
        if window > self._window:
            self._window = window
            self._end_window(trainer, pl_module)
        elif trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._end_first_window(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When a validation begins: end the first window, since who watches it looks after the validation."""
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn == "fit":
            self._end_first_window(trainer, pl_module)

    def _end_first_window(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it where it is, if somebody would find nothing now."""
        if self.every_n_train_steps is not None and self._awaited(trainer, "train"):
            self._end_window(trainer, pl_module)

    def _end_window(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, pl_module, "train")
        self._begin(trainer, "train")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a training epoch: hand its rows to :meth:`_complete`; not where windows of steps count."""
        if self.every_n_train_steps is None:
            self._end(trainer, pl_module, "train")

    def _say_nothing_came(self) -> None:
        if not self._said:
            self._say_once(
                rank_zero_warn,
                f"nothing was measured in this training: no validation came that was due (every_n_epochs="
                f"{self.every_n_epochs}), and no window of steps was full (every_n_train_steps="
                f"{self.every_n_train_steps}); stage='train' measures training epochs",
            )

    def _say_silent(self, layer: str, split: str) -> None:
        step = {"train": "training_step", "test": "test_step"}.get(split, "validation_step")
        self._say_once(
            rank_zero_warn,
            f"layer {layer!r} was not called in any {step}, so there is no rank to log. Is it used in training only "
            "(stage='train')? Is it called as a module, since a hook does not see layer.forward(x) or another "
            "method of it? If the latents come out of no module, observe the one that takes them, with at='input', or "
            "attach the bottleneck with before=...",
        )

    def _say_once(self, say: Callable[[str], None], message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            say(f"{type(self).__name__}: {message}")
