"""A recipe as ``diffopt check`` tries it: the family's tiny weights, this machine, compilers that only capture.

What this machine cannot do, and a GPU can, is left out of what is run, and told with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from diffopt.config import Composed, Composer
from diffopt.config.request import Request
from diffopt.config.resolve import Resolver, cell_from_config
from diffopt.machine import packages
from diffopt.models.tiny import has_tiny
from diffopt.recipe.cell import Cell
from diffopt.recipe.labels import changed_keys_of_label, changed_label, option_of_label
from diffopt.recipe.plan import make_plan
from diffopt.recipe.planned import Plan
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.schema.step import Step, Trait

CAPTURE = ("compile.backend=eager", "compile.mode=default")  # what makes any torch.compile quick
# What an option needs besides its name to do something on random weights, on small pictures and in few steps.
NEEDS_ON_TINY = {
    "cache=first_block": ("workload.steps=6", "cache.threshold=0.9"),
    "cache=mag": ("workload.steps=6", "cache.threshold=0.5", "cache.max_skip_steps=2", "cache.mag_ratios=[1.0]"),
    "cache=mag_calibrate": ("workload.steps=6",),
    "cache=sea": ("workload.steps=6", "cache.threshold=5.0"),
    "cache=taylorseer": ("workload.steps=6", "cache.cache_interval=2", "cache.disable_cache_before_step=2"),
    "cache=taylorseer_lite": ("workload.steps=6", "cache.cache_interval=2", "cache.disable_cache_before_step=2"),
    "cache=pab": ("workload.steps=6", "cache.spatial_attention_timestep_skip_range=[-1,1001]"),
    "cache=faster": (
        "workload.steps=6",
        "cache.spatial_attention_timestep_skip_range=[-1,990]",
        "cache.unconditional_batch_timestep_skip_range=[-1,990]",
        "cache.unconditional_batch_skip_range=2",
    ),
    "vae=slicing": ("workload.batch_size=2",),
    "vae=tiling": ("vae.tile=32",),
    "vae=slicing_tiling": ("workload.batch_size=2", "vae.tile=32"),
}
GPU = "h100"  # the option that takes most: what is refused there too is the recipe's mistake
CUSTOMARY = ("height", "width", "steps", "guidance", "frames", "later_stages")  # of the workload, from the tiny configs


@dataclass(frozen=True)
class Smoke:
    """One recipe on one model: what is run here, and what is not."""

    title: str
    plan: Plan  # without the steps that are not run
    not_run: Mapping[str, str] = field(default_factory=dict)  # ``group=option`` and why
    refused: tuple[str, ...] = ()  # why it can be run nowhere
    captured: bool = False  # what is compiled is captured, and no code generated


def overrides_without_codegen(step: Step) -> tuple[str, ...]:
    """Overrides with which a step that compiles captures graphs and generates no code; none where they do nothing."""
    if getattr(step, "backend", None) != "inductor":
        return ()
    tuned = [f"compile.options.{name}=null" for name in step.options.model_dump()]  # type: ignore[attr-defined]
    return (*CAPTURE, *tuned)


class Smokes:
    """Makes such cells; composes and resolves with what it has already looked up."""

    def __init__(self, composer: Composer, *, compile_code: bool = False) -> None:
        self._composer, self._compile_code = composer, compile_code
        self._resolver = Resolver(composer)
        self._customary = Composer().compose([]).data  # of each group the option that does nothing

    def make(self, words: Sequence[str], title: str | None = None) -> Smoke:
        """The smoke test of what ``words`` ask for. Raises UsageError, also for a model without tiny configs."""
        added = [*_small(self._composer.compose(words), words)]
        request = self._resolver.request(self._composer.compose([*words, *added]))
        captured = () if self._compile_code else overrides_without_codegen(request.cell.recipe.compile)
        if captured:
            request = self._resolver.request(self._composer.compose([*words, *added, *captured]))
        request = replace(request, cell=_labelled_as_asked(request.cell, (*added, *captured)))
        named = (option_of_label(request.cell.choices[group]) for group in ("recipe", "model"))
        smoke = self._runnable(request, title or " x ".join(named))
        return replace(smoke, captured=bool(captured))

    def families(self) -> list[str]:
        """The model options that have tiny configs, or are small themselves."""
        names = self._composer.options("model")
        models = {name: self._composer.compose([f"model={name}"]).data["model"] for name in names}
        return [name for name, model in models.items() if _is_small(model) or has_tiny(model["architecture"])]

    def _runnable(self, request: Request, title: str) -> Smoke:
        """Steps that the plan takes on a GPU alone are replaced by doing nothing, as are those that lack a package."""
        plan = make_plan(request.cell)
        anywhere = plan if request.cell.recipe.hardware.device == "cuda" else self._on_gpu(request)
        not_run: dict[str, str] = {}
        while not anywhere.problems and (found := dict(reversed([*self._obstacles(plan)]))):  # the first reason counts
            not_run |= {plan.choice(group): reason for group, reason in found.items()}
            plan = self._without(plan, found)
        return Smoke(title, plan, not_run, tuple(anywhere.reasons or plan.reasons))

    def _on_gpu(self, request: Request) -> Plan:
        data = request.cell.model_dump(mode="json")
        data["recipe"]["hardware"] = self._composer.read_option("hardware", GPU)
        return make_plan(cell_from_config(data))

    def _obstacles(self, plan: Plan) -> Iterator[tuple[str, str]]:
        """Groups whose step cannot be run here, and why."""
        for problem in plan.problems:
            groups = [key.partition("=")[0].partition(".")[0] for key in problem.keys]
            for group in [group for group in groups if group in STEP_GROUPS]:
                yield group, f"{problem.fact}; a GPU takes it"
        for group, step in plan.steps:
            if reason := packages.reason_of_lacking([step.requires()]):
                yield group, reason
            elif not self._compile_code and Trait.GENERATES_CODE in step.traits:
                yield group, "it generates code, which takes its time; --compile runs it"

    def _without(self, plan: Plan, groups: Mapping[str, str]) -> Plan:
        data = plan.cell.model_dump(mode="json")
        data["recipe"] |= {group: self._customary[group] for group in groups}
        data["choices"] = {group: option for group, option in plan.cell.choices.items() if group not in groups}
        return make_plan(cell_from_config(data))


def _small(composed: Composed, words: Sequence[str]) -> Iterator[str]:
    """What makes a cell small and fit for this machine, but for what is typed."""
    typed, groups = composed.typed, {word.partition("=")[0] for word in words}
    model, choices = composed.data["model"], composed.choices
    if "hardware" not in groups:
        yield "hardware=auto"
    if model["weights"] != "tiny" and not _is_small(model):
        yield from () if "model" in groups else (f"model={choices['model']}",)
        yield "model.weights=tiny"
    wanted = {f"workload.{key}": "null" for key in CUSTOMARY if key in composed.data["workload"]}
    for group in STEP_GROUPS:
        wanted |= dict(need.split("=", 1) for need in NEEDS_ON_TINY.get(f"{group}={choices.get(group)}", ()))
    yield from (f"{key}={value}" for key, value in wanted.items() if key not in typed)


def _labelled_as_asked(cell: Cell, added: Iterable[str]) -> Cell:
    """The cell whose labels tell what was asked, and not what was ``added`` to make it small."""
    keys = {word.partition("=")[0] for word in added}
    changed = {group: changed_keys_of_label(label) for group, label in cell.choices.items()}
    choices = {
        group: changed_label(option_of_label(label), [key for key in changed[group] if f"{group}.{key}" not in keys])
        for group, label in cell.choices.items()
    }
    return cell.model_copy(update={"choices": choices})


def _is_small(model: Mapping[str, object]) -> bool:
    """Whether its weights lie in the package, which has none of a large model."""
    return model["weights"] == "pretrained" and model["architecture"] is not None and model["id"] is None
