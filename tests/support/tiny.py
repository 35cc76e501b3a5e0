"""Names of tests for the families at a million parameters, and the words that choose them; needs no torch.

``flux_dev`` is the model option in its customary task, ``flux_dev img2img`` is it in another.
"""

from __future__ import annotations

from functools import cache

from diffopt.config.resolve import make_composer
from diffopt.models.resolve import PACKAGED, TINY


def tiny(name: str, steps: int | None = 2) -> tuple[str, ...]:
    """The words that choose a family and a task, with the fewest steps that show anything; None: the customary ones."""
    family, _, task = name.partition(" ")
    asked = () if task == "img2img" or steps is None else (f"workload.steps={steps}",)  # two may begin at pure noise
    weights = () if family == "tiny" else ("model.weights=tiny",)  # that one is small itself
    return (f"model={family}", *weights, *([f"workload={task}"] if task else []), *asked)


@cache
def families() -> tuple[str, ...]:
    """Every model option that has tiny configs."""
    composer = make_composer(None, ())
    architectures = {
        name: composer.compose([f"model={name}"]).data["model"]["architecture"] for name in composer.options("model")
    }
    return tuple(name for name, folder in architectures.items() if folder and (PACKAGED / folder / TINY).is_dir())


@cache
def every_task() -> tuple[str, ...]:
    """Every family in each of its tasks."""
    composer, found = make_composer(None, ()), []
    for name in families():
        model = composer.compose([f"model={name}"]).data["model"]
        tasks = [task for task, pipeline in model["pipelines"].items() if pipeline]
        found += [name if task == model["task"] else f"{name} {task}" for task in tasks]
    return tuple(found)
