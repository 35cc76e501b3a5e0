"""A folder of the wheels that a machine without a network lacks to run diffopt from a checkout.

``scripts/wheelhouse DIR`` downloads what diffopt needs beside what the machine has already, such as PyTorch, and lets
pip's own resolver check that nothing is missing. What the machine has is a list in the form of ``pip freeze``; each of
its packages takes part in the resolving as an empty wheel of that version, so that it is neither downloaded nor
replaced, and a conflict with it is found here and not there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from diffopt.errors import DiffoptError, Refusal, UsageError

CHECKOUT = Path(__file__).parents[2]
LIMIT_MB = 60.0
# What a machine for PyTorch 2.11 on CUDA 13 and Python 3.12 has, of what diffopt needs; as its `pip list` said in
# 2026-11. Packages whose versions are not known there (Pillow, PyYAML, requests, …) are not in it and are packed.
PRESENT = (
    *("torch==2.11.0", "triton==3.6.0", "torchvision==0.26.0", "numpy==2.5.2", "safetensors==0.8.0"),
    *("transformers==5.17.0", "tokenizers==0.23.2", "huggingface_hub==1.33.0", "accelerate==1.15.0"),
)
MARK = "+there"  # the local version of the wheels that stand for what the machine has
# pip takes a tag as it is given, so all that wheels for Linux on x86-64 are customarily named after are given
MANYLINUX = ("2_39", "2_35", "2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
PLATFORMS = tuple(f"manylinux_{tag}_x86_64" for tag in MANYLINUX)
PLATFORMS += tuple(f"manylinux{tag}_x86_64" for tag in ("2014", "2010", "1")) + ("linux_x86_64",)
SOURCE_ONLY = ("antlr4-python3-runtime",)  # of Hydra; not on PyPI as a wheel, pure Python
PIP = (sys.executable, "-m", "pip")
SITE = "$HOME/diffopt-site"


@dataclass(frozen=True)
class Target:
    """The machine: its Python, and what it has, as ``NAME==VERSION``."""

    python: str
    present: tuple[Requirement, ...]

    @property
    def arguments(self) -> list[str]:
        """pip's words for resolving for that machine. Markers are still this Python's, which pip cannot change."""
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        return ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python, *platforms]


def read_present(lines: Sequence[str], where: str) -> tuple[Requirement, ...]:
    """What ``pip freeze`` printed; comments and packages without a version are left out.

    Raises UsageError for a line that is neither.
    """
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text or " @ " in text or text.startswith("-e "):  # from a file or a repository: the version is not said
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise UsageError(
                f"{where}, line {number}: {text!r} is not NAME==VERSION, as `pip freeze` prints."
            ) from error
        if _version(requirement) is not None:
            found.append(requirement)
    return tuple(found)


def _version(requirement: Requirement) -> str | None:
    """The version of ``NAME==VERSION`` without a build's own label, such as the ``+cu130`` of torch."""
    pins = [clause.version for clause in requirement.specifier if clause.operator == "=="]
    return pins[0].partition("+")[0] if len(pins) == 1 and len(requirement.specifier) == 1 else None


def needed(checkout: Path, extras: Sequence[str]) -> list[str]:
    """diffopt's own requirements, from ``pyproject.toml``. Raises UsageError for an extra that there is not."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    if unknown := set(extras) - set(optional):
        raise UsageError(f"--extra {min(unknown)}: there is no such extra. Extras: {', '.join(optional)}.")
    return [*project["dependencies"], *(text for extra in extras for text in optional[extra])]


def make(folder: Path, target: Target, *, extras: Sequence[str] = (), pip: Sequence[str] = PIP) -> list[Path]:
    """Fill ``folder`` and check it. Returns the wheels, largest first.

    Raises:
        UsageError: the folder has something in it.
        Refusal: pip finds no such set of wheels, or the folder turns out to lack one.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; two versions of a package in it could not be installed.")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = needed(CHECKOUT, extras)
    with tempfile.TemporaryDirectory(prefix="diffopt-wheelhouse-") as temporary:
        stand_ins, pins = Path(temporary) / "there", Path(temporary) / "constraints.txt"
        stand_ins.mkdir()
        for requirement in target.present:
            stand_in(stand_ins, requirement.name, f"{_version(requirement)}{MARK}")
        tested = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pins.write_text("\n".join(_pins(tested, target)) + "\n", encoding="utf-8")
        sources = ["--find-links", str(stand_ins), "--find-links", str(folder), "-c", str(pins)]
        names = [_pinned(name, tested) for name in SOURCE_ONLY]
        _run([*pip, "wheel", "--quiet", "--no-deps", "-w", str(folder), *names], "build what is there as source only")
        download = [*pip, "download", "--quiet", *target.arguments, *sources, "-d", str(folder), *wanted]
        _run(download, "find wheels for that machine")
        for stood_in in folder.glob(f"*{MARK}-*.whl"):
            stood_in.unlink()
        nowhere = ["--target", str(Path(temporary) / "site")]
        check = [*pip, "install", "--quiet", "--dry-run", "--no-index", *target.arguments, *sources, *nowhere, *wanted]
        _run(check, "install the folder's wheels on that machine")
    return sorted(folder.glob("*.whl"), key=lambda wheel: wheel.stat().st_size, reverse=True)


def _pins(tested: Sequence[str], target: Target) -> list[str]:
    """The tested versions, but of what the machine has the ones that it has."""
    there = {canonicalize_name(r.name): f"{r.name}=={_version(r)}{MARK}" for r in target.present}
    lines = [line for line in tested if line.strip() and not line.startswith("#")]
    return [*(line for line in lines if canonicalize_name(Requirement(line).name) not in there), *there.values()]


def _pinned(name: str, tested: Sequence[str]) -> str:
    return next((line for line in tested if line.startswith(f"{name}==")), name)


def stand_in(folder: Path, name: str, version: str) -> Path:
    """An empty wheel of that name and version, which needs nothing."""
    stem = f"{canonicalize_name(name).replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", about)
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def _run(command: Sequence[str], doing: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reasons = [line for line in said if line.startswith("ERROR")] or said[-3:]
        raise Refusal(f"pip cannot {doing}: {' '.join(reasons)}")


def _print(wheels: Sequence[Path], folder: Path, target: Target, limit_mb: float) -> None:
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 1e6:7.2f} MB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{total:7.2f} MB  in {len(wheels)} wheels; pip finds nothing missing for Python {target.python} on x86-64")
    if total > limit_mb:
        raise Refusal(
            f"{folder} has {total:.1f} MB, more than --limit-mb {limit_mb:g}; the largest ones are listed first"
        )
    options = "--no-index --no-deps --no-compile --upgrade"
    print(f'there:  python3 -m pip install {options} --target "{SITE}" {folder.name}/*.whl')
    print(f'        export PYTHONPATH="{SITE}:$PWD"  # in the checkout; then, with any folder as the study,')
    print("        python3 -m diffopt run -m sweep=gpu_matrix launch.minutes=9 study=docs/results/nvidia-h100")


def main(argv: Sequence[str] | None = None, *, pip: Sequence[str] = PIP) -> int:
    """Exit code 1: no such folder can be made, or it is too large; 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="scripts/wheelhouse", description="Wheels for a machine without a network.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or an empty folder")
    parser.add_argument("--present", type=Path, metavar="FILE", help="what that machine has: its `pip freeze`")
    parser.add_argument("--python", default="3.12", help="its Python (default 3.12)")
    parser.add_argument("--extra", action="append", default=[], help="an extra of diffopt's, such as lora")
    parser.add_argument("--limit-mb", type=float, default=LIMIT_MB, help=f"how large it may be (default {LIMIT_MB:g})")
    args = parser.parse_args(argv)
    try:
        target = Target(args.python, _present(args.present))
        _print(make(args.folder, target, extras=args.extra, pip=pip), args.folder, target, args.limit_mb)
    except DiffoptError as error:
        print(f"wheelhouse: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _present(path: Path | None) -> tuple[Requirement, ...]:
    if path is None:
        return read_present(PRESENT, "the built-in list")
    try:
        return read_present(path.read_text(encoding="utf-8").splitlines(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--present {path} cannot be read: {error}.") from error


if __name__ == "__main__":
    sys.exit(main())
