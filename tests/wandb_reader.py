"""Reads an offline W&B run back: the records of its ``.wandb`` file, which is a LevelDB log of protocol buffers."""

import json
import struct
import time
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER, _BLOCK, _RECORD = 7, 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path, timeout: float = 60) -> list[Any]:
    """All records of a finished run; ``finish()`` returns before the last block of the file is written."""
    deadline = time.monotonic() + timeout
    while True:
        found = _read(path)
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, f"{path}: the run does not end"
        time.sleep(0.05)


def _read(path: Path) -> list[Any]:
    data = path.read_bytes()
    found, position, parts = [], _HEADER, b""
    while position + _RECORD <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _RECORD:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _RECORD])
        parts += data[position + _RECORD : position + _RECORD + length]
        position += _RECORD + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
        else:
            assert kind in (_FIRST, _MIDDLE), kind
    return found


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows."""
    rows = [record.history for record in records(path) if record.WhichOneof("record_type") == "history"]
    return [{(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in row.item} for row in rows]


def step_metrics(path: Path) -> dict[str, str]:
    """What the curves are drawn over, by the name or the pattern of the curve."""
    metrics = [record.metric for record in records(path) if record.WhichOneof("record_type") == "metric"]
    return {metric.name or metric.glob_name: metric.step_metric for metric in metrics}
