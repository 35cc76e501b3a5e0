"""Pipelines that no model option names: the table of families against diffusers, and folders of many families."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import pytest

from diffopt.pipeline_tasks import FAMILIES, Family, family, told_by_name
from diffopt.workload import NEEDS

ROWS = [(name, task, cls) for name, entry in FAMILIES.items() for task, cls in entry.classes.items()]
ARGUMENTS = {
    "image": ("image",),
    "mask": ("mask_image",),
    "control": ("control_image", "image"),
    "strength": ("strength",),
    "control_scale": ("controlnet_conditioning_scale",),
    "frames": ("num_frames",),
}
# Classes in diffusers' mappings that a workload cannot call, and why.
NOT_CALLED = {
    "StableCascadeCombinedPipeline": "two guidance scales",
    "WuerstchenCombinedPipeline": "deprecated, two guidance scales",
    "HeliosPyramidPipeline": "a number of steps for each level of its pyramid",
    "Ideogram4Pipeline": "its guidance is a schedule",
    "FluxControlPipeline": "its control has no scale",
    "CogView4ControlPipeline": "its control has no scale",
    "StableDiffusionXLControlNetUnionPipeline": "asks for the kind of control",
    "ZImageControlNetInpaintPipeline": "picture, mask and control at once",
    "QwenImageLayeredPipeline": "gives layers",
    "AnyFlowFARPipeline": "starts from latents of a video",
}


def pipeline_class(name: str) -> Any:
    """The class, or skip the test where diffusers lacks a package for it (Kolors' tokenizer)."""
    import diffusers

    cls = getattr(diffusers, name)
    if "dummy" in cls.__module__:
        pytest.skip(f"{name} needs {cls._backends}")
    return cls


def call_of(cls: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(cls.__call__).parameters.items()}


def source(cls: Any) -> str:
    return inspect.getsource(sys.modules[cls.__module__])


@pytest.mark.parametrize(("name", "task", "cls_name"), ROWS, ids=[f"{row[1]}-{row[2]}" for row in ROWS])
def test_classes_take_what_their_task_gives(name: str, task: str, cls_name: str) -> None:
    cls, entry = pipeline_class(cls_name), FAMILIES[name]
    accepted = call_of(cls)
    asked = {"prompt", "num_inference_steps", "generator", "output_type", entry.scale, *entry.call}
    assert asked <= accepted.keys()
    for need in NEEDS[task]:  # type: ignore[index]
        assert set(ARGUMENTS[need]) & accepted.keys(), need
    if not {"image", "control"} & set(NEEDS[task]):  # type: ignore[index]
        assert {"height", "width"} <= accepted.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_as_their_classes(name: str) -> None:
    """Components, steps, guidance, sizes and frames of the customary class."""
    entry = FAMILIES[name]
    task, cls_name = next(iter(entry.classes.items()))
    cls = pipeline_class(cls_name)
    components = inspect.signature(cls.__init__).parameters
    assert set(entry.parts) | set(entry.pictures) <= components.keys()
    needed = {
        part
        for part in ("feature_extractor", "image_encoder")
        if part in components and part not in cls._optional_components
    }
    assert needed <= set(entry.pictures)
    given = call_of(cls)
    assert (entry.steps, entry.guidance) == (given["num_inference_steps"], given[entry.scale])
    if given.get("height") is not None and given.get("width") is not None and "height" in given:
        assert entry.size == (given["height"], given["width"])
    if given.get("num_frames") is not None and "num_frames" in given:
        assert entry.frames == given["num_frames"]
    assert (entry.frames is not None) == (task in ("txt2video", "img2video"))
    checked = {int(number) for number in re.findall(r"height % (\d+) != 0", source(cls))}
    assert checked <= {entry.multiple}
    assert (".force_upcast" in source(cls)) == entry.upcasts
    latent = re.search(r"self\.default_sample_size = (\d+)", source(cls))
    assert entry.latent == (int(latent[1]) if latent else None)
    if (fps := re.search(r"export_to_video\(.*fps=(\d+)", source(cls))) and entry.fps is not None:
        assert entry.fps == int(fps[1])


def translated(mapping: str, cls: Any) -> str | None:
    """Our task for a class in one of diffusers' mappings; None where a workload cannot call it."""
    accepted, name = call_of(cls), cls.__name__
    if name in NOT_CALLED or ("Control" in name and mapping != "TEXT2IMAGE"):
        return None
    if "Control" in name:
        return "controlnet"
    if mapping == "IMAGE2IMAGE":
        return "img2img" if "strength" in accepted else "edit"
    plain = {"TEXT2IMAGE": "txt2img", "INPAINT": "inpaint", "TEXT2VIDEO": "txt2video", "IMAGE2VIDEO": "img2video"}
    return "txt2video" if "num_frames" in accepted and mapping == "TEXT2IMAGE" else plain[mapping]


@pytest.mark.parametrize("mapping", ["TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT", "TEXT2VIDEO", "IMAGE2VIDEO"])
def test_tasks_are_those_of_diffusers_own_mappings(mapping: str) -> None:
    from diffusers.pipelines import auto_pipeline

    missing = []
    for cls in getattr(auto_pipeline, f"AUTO_{mapping}_PIPELINES_MAPPING").values():
        task, entry = translated(mapping, cls), family(cls.__name__)
        if task is not None and (entry is None or entry.classes.get(task) != cls.__name__):  # type: ignore[call-overload]
            missing.append((cls.__name__, task))
        assert task is not None or entry is None, cls.__name__
    assert missing == []


def test_what_a_name_tells() -> None:
    assert told_by_name("StableVideoDiffusionPipeline") == "txt2video"
    assert told_by_name("FutureImageToVideoPipeline") == "img2video"
    assert told_by_name("FutureImg2ImgPipeline") == "img2img"
    assert told_by_name("FutureInpaintPipeline") == "inpaint"
    assert told_by_name("FutureControlNetPipeline") == "controlnet"
    assert told_by_name("FutureControlNetInpaintPipeline") is None
    assert told_by_name("FuturePipeline") is None
    mistaken = [cls for _, task, cls in ROWS if told_by_name(cls) not in (None, task)]
    assert mistaken == ["FluxFillPipeline"] or not mistaken
    assert isinstance(family("FluxPipeline"), Family)
