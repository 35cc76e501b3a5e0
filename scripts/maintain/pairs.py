"""Every pair of options from two groups: planned and run on tiny models, or refused with a reason.

``scripts/pairs`` runs all of them and writes ``docs/results/pairs.json`` and the table ``docs/pairs.md``; a test runs
some. A pair runs on the CPU in one process with others: the pipeline is built, called twice, and each step proves its
effect. ``torch.compile`` captures with ``backend=eager`` there, which finds graph breaks and recompiles in seconds and
generates no code.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffopt.config import Composer
from diffopt.config.resolve import compose_requests
from diffopt.config.smoke import NEEDS_ON_TINY, overrides_without_codegen
from diffopt.errors import DiffoptError, Refusal
from diffopt.machine import packages
from diffopt.recipe.plan import Plan, make_plan
from diffopt.recipe.recipe import STEP_GROUPS

FAMILIES = {"UNet": "sd15", "DiT": "flux_dev"}  # with model.weights=tiny
# Options that change nothing, and what they are the absence of.
BASE = {
    "precision": "fp32",
    "memory": "resident",
    "lora": "none",
    "fuse": "none",
    "quant": "none",
    "attention": "auto",
    "layout": "default",
    "vae": "default",
    "scheduler": "default",
    "compile": "none",
    "cache": "none",
}
# What an option needs on a GPU, where a plan alone is made: kernels that take half precision alone, and those of the
# hub, which somebody has to name a commit of and to allow.
COMMIT = "0" * 40
NEEDS_ON_GPU = {
    **{f"attention={name}": ("precision=bf16",) for name in ("cudnn", "flash2", "flash3", "sage")},
    **{
        f"attention={name}": (
            "precision=bf16",
            f"attention.hub.revision={COMMIT}",
            "attention.hub.trust_remote_code=true",
        )
        for name in ("flash2_hub", "flash3_hub", "flash4", "sage_hub")
    },
    **{f"quant={name}": ("precision=bf16",) for name in ("int4_weight", "fp8_dynamic_row")},
}
# Options that need another transformer than FLUX's, and a family that has it.
ELSEWHERE = {"cache=sea": "wan21_t2v_1_3b", "cache=faster": "cogvideox_2b"}

Option = tuple[str, str]  # group, option


@dataclass(frozen=True)
class Pair:
    """What became of two options together on one family."""

    family: str
    first: str  # group=option
    second: str
    status: str  # ok, refused, or error
    ended: str  # where it ended: alone (one of the two does not work without the other either), plan or run
    reason: str
    on_gpu: str | None = None  # where the CPU takes one of the two not at all: what an H100's plan says; empty: nothing


def options() -> list[Option]:
    """Every option of a step group that does something."""
    composer = Composer([])
    return [(g, option) for g in STEP_GROUPS for option in composer.options(g) if option != BASE[g]]


def pairs(chosen: Sequence[Option]) -> Iterator[tuple[Option, Option]]:
    """All pairs of options of two groups, in the order of the groups."""
    return ((a, b) for a, b in itertools.combinations(chosen, 2) if a[0] != b[0])


def try_pair(family: str, first: Option, second: Option, known: Pair | None = None) -> Pair:
    """Plan two options on a family and, if nothing speaks against them, run them here. Never raises.

    A run is not repeated where ``known`` has the same pair, which ran.
    """
    words = [f"{group}={option}" for group, option in (first, second)]

    def pair(status: str, ended: str, reason: str) -> Pair:
        return Pair(family, words[0], words[1], status, ended, " ".join(reason.split()))

    try:
        plan = _plan(family, words)
        if reasons := _reasons(plan):
            if not (lacking := [reason for word in words if (reason := reason_alone(family, word))]):
                return pair("refused", "plan", reasons)
            on_gpu = "; ".join(_plan(family, words, "h100").reasons)
            return replace(pair("refused", "alone", lacking[0]), on_gpu=" ".join(on_gpu.split()))
    except Exception as error:  # the table shows it, and scripts/pairs fails
        return pair("error", "plan", _words(error))
    if known is not None and known.ended == "run" and known.status != "error":
        return known
    status, reason = _OUTCOMES[plan.cell.id] = _OUTCOMES.get(plan.cell.id) or _outcome(plan)
    return pair(status, "run", reason)


# What became of cells in this process: without generated code, some ways of compiling ask for the very same.
_OUTCOMES: dict[str, tuple[str, str]] = {}


def _outcome(plan: Plan) -> tuple[str, str]:
    """Status and reason."""
    try:
        return "ok", _run(plan)
    except Refusal as error:
        return "refused", str(error)
    except Exception as error:  # as above
        return "error", _words(error)


def _words(error: Exception) -> str:
    said = str(error)
    if not isinstance(error, DiffoptError):  # a compiler's goes on for pages, with this machine's folders
        said = f"{type(error).__name__}: {said.partition(chr(10))[0]}"
    return "; ".join([*getattr(error, "__notes__", []), said])


@functools.cache
def reason_alone(family: str, word: str) -> str:
    """Why an option cannot be planned on a family even without another one; empty where it can."""
    return _reasons(_plan(family, [word]))


def _reasons(plan: Plan) -> str:
    """What speaks against a plan, and what this machine lacks for it."""
    lacking = packages.reason_of_lacking(step.requires() for _, step in plan.steps)
    return "; ".join([*plan.reasons, *([lacking] if lacking else [])])


def _tiny(model: str) -> tuple[str, str]:
    return f"model={model}", "model.weights=tiny"


def _plan(family: str, words: Sequence[str], hardware: str = "cpu") -> Plan:
    elsewhere = [ELSEWHERE[word] for word in words if word in ELSEWHERE and family == "DiT"]
    model = elsewhere[0] if elsewhere else FAMILIES[family]
    needs = [NEEDS_ON_TINY, NEEDS_ON_GPU] if hardware != "cpu" else [NEEDS_ON_TINY]
    more = {"workload.steps": "4"}
    for word in words:
        more |= dict(need.split("=", 1) for table in needs for need in table.get(word, ()))
        if word.startswith("lora="):
            more["lora.path"] = str(lora_file(model))
    more |= dict(word.split("=", 1) for word in words)  # the pair itself, whatever the other one needs
    asked = [*_tiny(model), f"hardware={hardware}", "measure=quick", *(f"{k}={v}" for k, v in more.items())]
    (request,) = compose_requests(asked)
    if hardware == "cpu" and (captured := overrides_without_codegen(request.cell.recipe.compile)):
        (request,) = compose_requests([*asked, *captured])
    return make_plan(request.cell)


@functools.cache
def lora_file(model: str) -> Path:
    """A random LoRA of rank 4 for the attention of the model's denoiser, in a folder that goes with this process."""
    import torch
    from safetensors.torch import save_file

    from diffopt.pipeline.build import build_pipelines

    (request,) = compose_requests([*_tiny(model), "hardware=cpu", "measure=quick"])
    (pipe,) = build_pipelines(make_plan(request.cell))
    name = request.cell.recipe.model.denoiser
    noise = torch.Generator().manual_seed(0)
    matrices = {}
    for path, part in getattr(pipe, name).named_modules():
        if isinstance(part, torch.nn.Linear) and path.endswith(("to_q", "to_k", "to_v")):
            matrices[f"{name}.{path}.lora_A.weight"] = torch.randn(4, part.in_features, generator=noise)
            up = torch.randn(part.out_features, 4, generator=noise)
            matrices[f"{name}.{path}.lora_B.weight"] = up / (4 * part.in_features) ** 0.5
    folder = Path(tempfile.mkdtemp(prefix="diffopt-pairs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_file(matrices, folder / f"{model}.safetensors")
    return folder / f"{model}.safetensors"


def _run(plan: Plan) -> str:
    """The effects of both steps, in words."""
    import torch

    from diffopt.pipeline.build import build_pipelines, verify_steps
    from diffopt.pipeline.meter import Meter

    torch.set_num_threads(1)  # more on tensors this small only wait for each other
    torch._dynamo.reset()
    pipes = build_pipelines(plan)
    meter = Meter(pipes, plan.cell)
    for _ in range(2):
        meter.call()
    effects = verify_steps(plan, pipes)
    return "; ".join(f"{e.group}: {e.summary}" for e in effects if e.group not in ("precision", "memory"))


def try_task(task: tuple[str, Option, Option, Pair | None]) -> Pair:
    return try_pair(*task)
