"""The one way to write a study, and to run it: a question, its measurement and its rule.

``python benchmarks/NAME.py`` measures, judges, and writes the report with its tables and figures to ``results/NAME/``.
``--quick`` does the same with little of everything, in less than a minute, and writes nothing.
"""

import argparse
import functools
import inspect
import io
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch
from matplotlib.figure import Figure
from tables import Row, write_csv

# Studies take data, networks and probes from the examples: programs import this module before any that does.
sys.path.append(str(Path(__file__).parents[1] / "examples"))
from rank_trainer.runs import shard_of

RESULTS = Path(__file__).parent / "results"
Tables = dict[str, list[Row]]
Job = TypeVar("Job")


@dataclass(frozen=True)
class Study:
    """A question, how it is measured, and the rule that answers it.

    Attributes:
        name: Of the folder of its report, or a function that gives it.
        title: Of its report, or a function.
        measure: Takes sizes, which have defaults, and gives tables; each is written to a CSV file of its name. Without
            tables there is no report.
        text: The report.
        verdict: What follows from the tables by the rule.
        figures: By file name.
        quick: Sizes of a run of less than a minute.
        flags: Of sizes that the command line sets: what they are.
        unwritten: Tables that are there for the figures alone.

    All functions but ``measure`` get the tables and sizes that they have an argument for, and the text the ``verdict``.
    """

    name: str | Callable[..., str]
    title: str | Callable[..., str]
    measure: Callable[..., Tables]
    text: Callable[..., str]
    verdict: Callable[..., str] | str = ""
    figures: Mapping[str, Callable[..., Figure]] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    unwritten: Sequence[str] = ()

    def main(self) -> None:
        """What the command line asks for."""
        parameters = inspect.signature(self.measure).parameters
        parser = argparse.ArgumentParser(
            description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--quick", action="store_true", help="little of everything, and nothing is written")
        for size, meaning in self.flags.items():
            option = _option(parameters[size]) | {"default": argparse.SUPPRESS}
            parser.add_argument(f"--{size.replace('_', '-')}", help=meaning, **option)
        given = vars(parser.parse_args())
        quick = given.pop("quick")
        torch.set_num_threads(1)
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        self.run(defaults | (dict(self.quick) if quick else {}) | given, quick)

    def run(self, sizes: Mapping[str, Any], quick: bool) -> None:
        """Measure, print the report, draw, and write all of it unless it is quick."""
        start = time.perf_counter()
        tables = self.measure(**sizes)
        if not tables:
            return
        minutes = (time.perf_counter() - start) / 60
        known = {name.replace(".", "_"): value for name, value in {**sizes, **tables}.items()}
        known["verdict"] = _given(self.verdict, known)
        body = wrapped(_given(self.text, known))
        print(body)
        pictures = {file_name: _png(_given(draw, known)) for file_name, draw in self.figures.items()}
        if quick:
            return
        directory = RESULTS / _given(self.name, known)
        directory.mkdir(parents=True, exist_ok=True)
        written = {f"{name}.csv": rows for name, rows in tables.items() if name not in self.unwritten}
        for file_name, rows in written.items():
            write_csv(directory / file_name, rows)
        for file_name, png in pictures.items():
            (directory / file_name).write_bytes(png)
        (directory / "README.md").write_text(
            f"# {_given(self.title, known)}\n\n{body}\n\n"
            f"- Every figure: {', '.join(f'[{file_name}]({file_name})' for file_name in written)}.\n"
            f"- Command: `{' '.join(['python', f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])}`\n"
            f"{environment()}\n" + (f"- It took {minutes:.2g} minutes.\n" if minutes > 0.1 else "")
        )
        print(directory / "README.md")


def judged(holds: bool, within_limits: bool) -> str:
    """The words of a verdict."""
    return "holds" if holds else "holds within limits" if within_limits else "does not hold"


def progress(jobs: Iterable[Job]) -> Iterator[Job]:
    """The same jobs; each is told once it is done, with the time since the first."""
    start = time.perf_counter()
    for job in jobs:
        yield job
        print(job, f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def wrapped(body: str) -> str:
    """The paragraphs filled to 120 columns; tables, lists, titles, pictures and indented blocks as they are."""
    fill = functools.partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)
    as_it_is = ("|", "- ", "#", "!", "    ")
    return "\n\n".join(block if block.startswith(as_it_is) else fill(block) for block in body.split("\n\n"))


def environment() -> str:
    """Hardware and versions, as list items."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "torchmetrics"))
    return (
        f"- Hardware: {_processor()}, {torch.get_num_threads()} thread(s) used, {device}.\n"
        f"- Versions: Python {platform.python_version()}, {packages}."
    )


def _option(size: inspect.Parameter) -> dict[str, Any]:
    """Of a flag: the type of what it sets is that of the default."""
    if size.default is False:
        return {"action": "store_true"}
    choices = get_args(size.annotation) if get_origin(size.annotation) is Literal else None
    kind = shard_of if size.name == "shard" else str if size.default is None else type(size.default)
    return {"type": kind, "default": size.default, "choices": choices}


def _given(function: str | Callable[..., Any], known: Mapping[str, Any]) -> Any:
    if isinstance(function, str):
        return function
    wanted = inspect.signature(function).parameters
    return function(**{name: value for name, value in known.items() if name in wanted})


def _png(figure: Figure) -> bytes:
    figure.savefig(file := io.BytesIO(), format="png")
    return file.getvalue()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
