"""What the logged numbers are called: by the monitor's own arguments, never by what else there is."""

import re
from collections.abc import Iterable, Sequence

from lightning_rank.callbacks._history import Measure


class Keys:
    """Names for loggers, files and pictures.

    Args:
        layers: Names of the layers.
        listed: Whether the layer's name is part of the key.
        name: Of the monitor, part of the key if there is one.
        what: Of a layer, for titles: ``"latents"`` or ``"input"``.
    """

    def __init__(self, layers: Sequence[str], listed: bool, name: str | None, what: str) -> None:
        self._layers, self._listed, self._name, self._what = set(layers), listed, name, what
        self._splits = {
            self.key(Measure(split, layer, None, "")): split
            for split in ("validate", "test", "train")
            for layer in layers
        }
        self.prefixes = set(self._splits)

    def key(self, of: Measure) -> str:
        """``rank/effective``, or ``rank/test/<name>/<layer>/effective/dataloader_idx_1`` with all there can be.

        The last part is how Lightning itself tells several dataloaders apart.
        """
        split = of.split if of.split in ("test", "train") else None
        parts = ["rank", split, self._name, of.layer if self._listed else None]
        loader = "" if of.loader is None else f"/dataloader_idx_{of.loader}"
        return "/".join([*filter(None, parts), of.name]) + loader

    def split(self, key: str) -> str | None:
        """Which split a key is of; ``None`` if it is none of these."""
        found = re.fullmatch(r"(.*?/)[^/]+(/dataloader_idx_\d+)?", key)
        return self._splits.get(found[1]) if found else None

    def place(self, of: Measure) -> str:
        """A layer, of several dataloaders each on its own."""
        return of.layer + ("" if of.loader is None else f"/dataloader_idx_{of.loader}")

    def title(self, of: Measure) -> str:
        """What a spectrum is of, in words."""
        what = "composed matrix" if of.name else self._what
        name = "" if self._name is None else f"{self._name} "
        split = " in training" if of.split == "train" else ""
        return f"{name}{what} of {of.layer}{split}" + ("" if of.loader is None else f" in loader {of.loader}")

    def file(self, of: Measure, others: Iterable["Keys"]) -> str:
        """What the file of a spectrum is called: the title, or the key if one of the others has that title, too.

        Those that list their layers give way, for they have the longer key.
        """
        twice = self._listed and any(
            not other._listed and other._name == self._name and of.layer in other._layers for other in others
        )
        stem = self.key(of._replace(name=f"{of.name}spectrum")) if twice else self.title(of)
        return stem.replace(" ", "_").replace("/", "_")
