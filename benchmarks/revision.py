"""The package as of a git revision, beside the one that is there."""

import importlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType


def load_revision(revision: str) -> ModuleType:
    """The package as of a git revision, beside the one that is there."""
    root = Path(__file__).parents[1]
    archive = subprocess.run(["git", "archive", revision, "lightning_rank"], cwd=root, check=True, capture_output=True)
    directory = tempfile.mkdtemp()
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(directory, filter="data")
    ours = _forget_modules()
    sys.path.insert(0, directory)
    try:
        return importlib.import_module("lightning_rank.metrics") and importlib.import_module("lightning_rank")
    finally:
        sys.path.remove(directory)
        _forget_modules()
        sys.modules.update(ours)


def _forget_modules() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "lightning_rank"}
