"""The curve of a fit and its spectra, thin enough for every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_rank.callbacks._files import Spectrum

_IN_MEMORY, _IN_CHECKPOINTS = 256, 24  # spectra of a kind


class Measure(NamedTuple):
    """What a number is: of which split, layer and dataloader (``None`` if there is only one)."""

    split: str
    layer: str
    loader: int | None
    name: str


class Row(NamedTuple):
    """What was measured at once."""

    epoch: int
    step: int
    values: dict[Measure, float]


class RankHistory:
    """What was measured in a fit.

    Attributes:
        rows: In the order in which they were measured.
        spectra: By what they are of; if they are many, some, evenly spaced over the steps, and the last.
        validations: How many there were, measured or not.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.spectra: dict[Measure, list[Spectrum]] = {}
        self.validations = 0

    def append(self, row: Row, spectra: Mapping[Measure, Tensor]) -> None:
        """Add a row, and its spectra."""
        self.rows.append(row)
        for of, values in spectra.items():
            kept = self.spectra.get(of, [])
            if kept and kept[-1].values.shape != values.shape:
                kept = []
            self.spectra[of] = _thin([*kept, Spectrum(row.epoch, row.step, values)], _IN_MEMORY)

    def state_dict(self) -> dict[str, Any]:
        """Plain Python and tensors: a table for all rows that hold the same, its columns as narrow as can be."""
        tables: dict[tuple[Measure, ...], list[int]] = {}
        for index, row in enumerate(self.rows):
            tables.setdefault(tuple(row.values), []).append(index)
        return {
            "validations": self.validations,
            "tables": [
                {
                    "measures": [tuple(measure) for measure in measures],
                    "rows": _column(indices),
                    "epochs": _column([self.rows[index].epoch for index in indices]),
                    "steps": _column([self.rows[index].step for index in indices]),
                    "columns": [
                        _column([self.rows[index].values[measure] for index in indices]) for measure in measures
                    ],
                }
                for measures, indices in tables.items()
            ],
            "spectra": [
                {
                    "of": tuple(of),
                    "epochs": _column([row.epoch for row in rows]),
                    "steps": _column([row.step for row in rows]),
                    "singular_values": torch.stack([row.values for row in rows]).to(torch.float32),
                }
                for of, rows in ((of, _thin(rows, _IN_CHECKPOINTS)) for of, rows in self.spectra.items())
            ],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], layers: Sequence[str]) -> RankHistory:
        """The history of a checkpoint, of version 0.1 too.

        Raises:
            ValueError: It is none of these layers.
        """
        history = cls()
        try:
            if "tables" not in state:
                return _of_first_version(state, layers)
            history.validations = int(state["validations"])
            rows: dict[int, Row] = {}
            for table in state["tables"]:
                measures = [Measure(*measure) for measure in table["measures"]]
                columns = [column.tolist() for column in table["columns"]]
                for place, index in enumerate(table["rows"].tolist()):
                    values = {measure: column[place] for measure, column in zip(measures, columns, strict=True)}
                    rows[index] = Row(int(table["epochs"][place]), int(table["steps"][place]), values)
            history.rows = [rows[index] for index in sorted(rows)]
            for kind in state["spectra"]:
                spectra = zip(kind["epochs"].tolist(), kind["steps"].tolist(), kind["singular_values"], strict=True)
                history.spectra[Measure(*kind["of"])] = [Spectrum(e, s, values.double()) for e, s, values in spectra]
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"its state is not one of {cls.__name__}: {error!r}") from None
        strange = {measure.layer for row in history.rows for measure in row.values} - set(layers)
        if strange:
            raise ValueError(f"it is of the layers {sorted(strange)}")
        return history


def _of_first_version(state: Mapping[str, Any], layers: Sequence[str]) -> RankHistory:
    """Keys were ``rank/effective``, or ``rank/<layer>/effective`` where there were other layers."""

    def measure(key: str) -> Measure:
        rest = key.removeprefix("rank/")
        for layer in layers:
            if rest.startswith(f"{layer}/"):
                return Measure("validate", layer, None, rest.removeprefix(f"{layer}/"))
        if "/" in rest or len(layers) > 1:
            raise ValueError(f"it has {key!r}")
        return Measure("validate", layers[0], None, rest)

    history = RankHistory()
    for row in state["rows"]:
        values = {measure(key): value for key, value in row.items() if key not in ("epoch", "step")}
        history.rows.append(Row(int(row["epoch"]), int(row["step"]), values))
    for prefix, rows in state["spectra"].items():
        spectra = [Spectrum(int(row["epoch"]), int(row["step"]), row["singular_values"]) for row in rows]
        history.spectra[measure(prefix)] = _thin(spectra, _IN_MEMORY)
    return history


def _thin(spectra: Iterable[Spectrum], most: int) -> list[Spectrum]:
    """The first, the last, and of the others those that are left when the closest ones are taken out one by one."""
    kept = list(spectra)
    stride = len(kept) // (2 * most)
    if stride > 1:
        kept = kept[:-1:stride] + kept[-1:]
    while len(kept) > most:
        gaps = [after.step - before.step for before, after in zip(kept, kept[2:], strict=False)]
        del kept[1 + gaps.index(min(gaps))]
    return kept


def _column(values: Sequence[float]) -> Tensor:
    exact = torch.tensor(values, dtype=torch.float64)
    if not all(float(value).is_integer() for value in values):
        return exact
    column = exact.to(torch.int64)
    for dtype in (torch.int8, torch.int16, torch.int32):
        if torch.equal(column.to(dtype).to(torch.int64), column):
            return column.to(dtype)
    return column
