"""The most valuable cells first, on a GPU machine without a network, in the minutes that there are.

``scripts/gpu_matrix --minutes N`` goes through a list of cells (gpu_matrix.yaml), at full size with random weights. It
starts no cell that it expects not to end in time, asks one that does not end to stop, and goes on where the study
stopped when it is called again. Rows, tables and the packed study are whole after every cell.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffopt.cli import printing
from diffopt.cli.streams import standard_streams
from diffopt.errors import DiffoptError, Interrupted, Refusal, UsageError
from diffopt.machine import hardware
from diffopt.recipe.plan import make_plan
from diffopt.results.study import Study
from diffopt.results.table import Table
from scripts.maintain.gpu_matrix.cells import SHIPPED, Point, folder_name, points, read_matrix, standing
from scripts.maintain.gpu_matrix.run import RESERVE_S, Budget, environment_of, estimated, minutes_for, run, teller
from scripts.maintain.gpu_matrix.times import Times

RESULTS = Path(__file__).parents[3] / "docs" / "results"  # of the checkout
PLACE = re.compile(r"(?<==)(~[^/]*|\.{0,2})/(.*/)?")  # the folders of a path
COMMIT = re.compile("[0-9a-f]{7,40}")


def dry_run(todo: Sequence[Point], path: Path, minutes: float) -> None:
    """Print every cell with its state and estimate, and what of it fits into the minutes."""
    study, where = Study(path), environment_of(todo[0].cell)
    times, left = Times(path), minutes * 60 - RESERVE_S
    now = standing(todo, study.results(teller()), where)
    lines = []
    for point in [*(p for p in todo if p.cell.id in now.done), *now.waiting]:
        seconds = estimated(point, times)
        if (row := now.done.get(point.cell.id)) is not None:
            state = f"has its row: {row.status}"
        elif make_plan(point.cell).problems:
            state = "refused by its plan"
        else:
            fits = seconds <= left - point.request.launch.grace
            state, left = ("runs", left - seconds) if fits else (f"needs {minutes_for(point, seconds)} minutes", left)
        lines.append((point.cell.id, f"{seconds:.0f}", state, point.words))
    printing.print_table(Table(("cell", "seconds", "state", "words"), tuple(lines), right=frozenset({1})))
    if where is None:
        print("no such GPU here: a row from any environment counts as one from there")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_matrix", description="Measure the most valuable cells on this machine's GPU, as time allows."
    )
    parser.add_argument("--minutes", type=float, required=True, help="when to be over, all included")
    parser.add_argument("--study", type=Path, help="the study's folder; docs/results/GPU without")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the study as DIR/GPU.tar.gz, without pictures")
    parser.add_argument("--cells", type=Path, metavar="FILE", default=SHIPPED, help="another list of cells (YAML)")
    parser.add_argument("--commit", metavar="SHA", help="of this copy, where it has no .git: for the tables")
    parser.add_argument("--dry-run", action="store_true", help="print what would run; hardware=h100 needs no GPU")
    parser.add_argument("words", nargs="*", metavar="GROUP=OPTION|KEY=VALUE", help="for every cell; they win")
    return parser


def _check(args: argparse.Namespace) -> None:
    if not (math.isfinite(args.minutes) and args.minutes >= 0):
        raise UsageError(f"--minutes {args.minutes:g}: give a number of minutes, 0 or more.")
    if args.commit is not None and COMMIT.fullmatch(args.commit) is None:
        raise UsageError(f"--commit {args.commit!r} is no commit: give what `git rev-parse HEAD` prints.")


def _command(args: argparse.Namespace) -> str:
    """The command as tables show it: without the places of this machine."""
    words = ["scripts/gpu_matrix", "--minutes", f"{args.minutes:g}"]
    if args.cells != SHIPPED:
        words += ["--cells", args.cells.name]
    if args.commit is not None:
        words += ["--commit", args.commit]
    return shlex.join([*words, *(PLACE.sub("", word) for word in args.words)])


@contextmanager
def _disk() -> Iterator[None]:
    """What the system says of a file is a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{error.filename or 'a file'}: {error.strerror or error}. --study and --out need to be folders that can "
            "be written to, on a disk that is not full. Rows that are there stay, and the same command goes on."
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: it ended by itself and no row failed; 1: some did, or there is no GPU; 2: wrong usage."""
    began = time.monotonic()
    args = _parser().parse_intermixed_args(argv)
    try:
        _check(args)
        todo = points(read_matrix(args.cells), args.words)
        device = todo[0].cell.recipe.hardware
        if device.device == "cpu" and "hardware=cpu" not in args.words:
            raise Refusal("this machine has no NVIDIA GPU; hardware=h100 --dry-run plans for one")
        path = args.study or RESULTS / folder_name(device.name)
        if args.dry_run:
            dry_run(todo, path, args.minutes)
            return 0
        if (absent := hardware.check_declared(device)) is not None:
            raise Refusal(f"{absent}; --dry-run needs none")
        with _disk():
            made = run(todo, Study.create(path), Budget(began + 60 * args.minutes), args.out, _command(args))
        return 0 if set(made) <= {"ok", "refused", "oom", "interrupted"} else 1
    except Interrupted as stop:
        print(f"gpu_matrix: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except DiffoptError as error:
        print(f"gpu_matrix: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    with standard_streams():
        sys.exit(main())
