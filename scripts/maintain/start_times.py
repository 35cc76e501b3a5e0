"""How long a fresh process takes to its first picture: ``scripts/bench_starts``.

Each start is one ``diffopt run`` with compile caches of its own: empty (cold), left by an earlier process (warm), empty
beside the artifact that an earlier process saved (artifact), or with the package of an earlier process (aot).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffopt.machine.compile_cache import private_compile_caches
from diffopt.machine.files import write_json
from diffopt.results.result import Result
from diffopt.results.study import Study


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_starts", description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--compile", default=["regional", "default"], nargs="*", help="options of group compile")
    parser.add_argument("words", nargs="*", default=[], help="overrides for every run, such as model=sdxl")
    args = parser.parse_args(argv)
    found: dict[str, Any] = {"environment": None, "words": args.words, "starts": {}}
    with tempfile.TemporaryDirectory(prefix="diffopt-") as folder:
        for option in args.compile:
            found["starts"][option] = artifacts(Path(folder) / option, option, args.words)
        found["starts"]["aot"] = packages(Path(folder) / "aot", args.words)
        (row,) = Study.open(Path(folder) / "aot" / "loaded").results()
        found["environment"] = row.environment.model_dump(mode="json")
    if args.output:
        write_json(args.output, found)


def artifacts(folder: Path, option: str, words: Sequence[str]) -> dict[str, Any]:
    """A cold start, a warm one, and one that has an empty cache and the artifact."""
    save = "launch.compile_artifact.save=true"
    cold = start(folder / "cold", folder / "caches", f"compile={option}", save, *words)
    warm = start(folder / "warm", folder / "caches", f"compile={option}", *words)
    kept = Study.open(folder / "cold").folder(cold.cell_id, cold.env_id) / str(cold.artifacts.compile_cache)
    pinned = f"launch.compile_artifact.sha256={cold.artifacts.compile_cache_sha256}"
    load = [f"launch.compile_artifact.load={kept}", pinned]
    loaded = start(folder / "loaded", folder / "empty", f"compile={option}", *load, *words)
    return {
        "cold": figures(cold),
        "warm": figures(warm),
        "artifact": figures(loaded),
        "artifact_bytes": kept.stat().st_size,
    }


def packages(folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """A start that makes the package of ``compile=aot``, and one that loads it."""
    made = start(folder / "made", folder / "caches", "compile=aot", *words)
    loaded = start(folder / "loaded", folder / "caches", "compile=aot", *words)
    return {"cold": figures(made), "package": figures(loaded)}


def start(study: Path, caches: Path, *words: str) -> Result:
    """One ``diffopt run`` in a process of its own. Raises CalledProcessError where its row is not ok."""
    study.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "diffopt",
        "run",
        "measure=quick",
        "measure.max_variation=10",
        f"study={study}",
        *words,
    ]
    subprocess.run(command, env={**os.environ, **private_compile_caches(caches)}, stdout=subprocess.DEVNULL, check=True)
    (result,) = Study.open(study).results()
    return result


def figures(result: Result) -> dict[str, Any]:
    metrics = result.metrics
    cache = None if metrics.compile_cache is None else metrics.compile_cache.model_dump()
    return {"first_call_s": metrics.first_call_s, "load_s": metrics.load_s, "compile_cache": cache}


if __name__ == "__main__":
    main()
