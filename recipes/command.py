"""What every recipe can be told, and how it ends: with a result, or with one sentence."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from regard.pretrained import Refused

HERE = Path(__file__).parent
KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every recipe is told; the fields are its options on the command line."""

    data: Annotated[Path | None, typer.Option(help="the folder in which each set of data has its own; else REGARD_DATA")] = None
    smoke: Annotated[bool, typer.Option("--smoke", help="a small slice for seconds, to see that all works")] = False
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False
    skip_malformed: Annotated[bool, typer.Option("--skip-malformed", help="leave out lines that cannot be read")] = False
    seed: Annotated[int, typer.Option(help="where chance begins")] = 1
    out: Annotated[
        Path | None, typer.Option(help="a folder for all that is written; else recipes/runs and recipes/results")
    ] = None
    accelerator: Annotated[str, typer.Option(help="Lightning's: auto, cpu, gpu, …")] = "auto"
    strategy: Annotated[str, typer.Option(help="Lightning's: auto, ddp, fsdp, …")] = "auto"
    precision: Annotated[str, typer.Option(help="Lightning's: 32-true, bf16-mixed, …; else the recipe's")] = ""

    def folder(self, name: str) -> Path:
        """Where checkpoints and logs of a run go; made if it is not there."""
        place = (self.out or HERE / "runs") / (f"{name}-smoke" if self.smoke else name)
        place.mkdir(parents=True, exist_ok=True)
        return place

    def results(self, name: str) -> Path:
        """Where scores and pictures of a run go: beside the recipes, where the run was a whole one."""
        return self.folder(name) if self.smoke or self.out else HERE / "results"


def command(main: Callable[..., Any]) -> None:
    """Runs main(run, …) from the command line: the fields of `Run` become options beside its own."""
    own = list(inspect.signature(main, eval_str=True).parameters.values())[1:]
    types = inspect.get_annotations(Run, eval_str=True)
    shared = [inspect.Parameter(f.name, KEYWORD, default=f.default, annotation=types[f.name]) for f in fields(Run)]

    def told(**options: Any) -> None:
        run = Run(**{f.name: options.pop(f.name) for f in fields(Run)})
        try:
            main(run, **options)
        except Refused as refused:
            stopped(str(refused))
        except OSError as error:
            where = f"{error.filename!r}" if error.filename else f"where runs are written, {str(run.out or HERE / 'runs')!r}"
            stopped(f"{where}: {error.strerror}." if error.strerror else str(error))

    told.__signature__ = inspect.Signature([p.replace(kind=KEYWORD) for p in own] + shared)  # type: ignore[attr-defined]
    told.__doc__ = inspect.getmodule(main).__doc__
    typer.run(told)


def stopped(sentence: str) -> NoReturn:
    """Ends the process with a sentence."""
    print(sentence, file=sys.stderr)
    raise SystemExit(1)
