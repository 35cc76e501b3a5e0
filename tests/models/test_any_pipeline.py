"""Pipelines that no model option names: the table of families against diffusers, and folders of many families."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from diffopt.errors import Refusal, UsageError
from diffopt.machine.packages import unmet_packages
from diffopt.machine.paths import shipped_conf
from diffopt.models.classes import DENOISERS, FAMILIES, Family
from diffopt.models.families import family_of_pipeline, task_told_by_class_name
from diffopt.models.resolve import packaged_architecture, with_model_facts
from diffopt.pipeline.load import load_pipeline
from diffopt.schema.model import Limits, Model
from diffopt.schema.workload import NEEDS

# What diffusers' Chroma and Mochi provoke themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
]
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
    "KandinskyInpaintCombinedPipeline": "no strength",
    "KandinskyV22InpaintCombinedPipeline": "no strength",
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


@pytest.mark.parametrize("name", FAMILIES)
def test_packages_that_a_class_takes_for_granted_are_named(name: str) -> None:
    entry = FAMILIES[name]
    for cls_name in entry.classes.values():
        text = source(pipeline_class(cls_name))
        cleans = (
            "clean_caption" in text or text.count("if is_ftfy_available()") > 1
        )  # only when asked, or when it is here
        assert ("ftfy.fix_text" in text and not cleans) == ("ftfy" in entry.packages), cls_name


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
        task, entry = translated(mapping, cls), family_of_pipeline(cls.__name__)
        if task is not None and (entry is None or entry.classes.get(task) != cls.__name__):  # type: ignore[call-overload]
            missing.append((cls.__name__, task))
        assert task is not None or entry is None, cls.__name__
    assert missing == []


REPEATED = {name: known.repeated_blocks for name, known in DENOISERS.items() if known.repeated_blocks is not None}


@pytest.mark.parametrize("class_name", REPEATED)
def test_repeated_blocks_are_those_of_classes_that_declare_none(class_name: str) -> None:
    import diffusers

    cls = getattr(diffusers, class_name)
    assert not cls._repeated_blocks
    lists = re.findall(r"ModuleList\(\s*\[\s*(\w+)\(", inspect.getsource(cls))
    assert sorted(REPEATED[class_name]) == sorted(set(lists))


def test_what_a_name_tells() -> None:
    assert task_told_by_class_name("StableVideoDiffusionPipeline") == "txt2video"
    assert task_told_by_class_name("FutureImageToVideoPipeline") == "img2video"
    assert task_told_by_class_name("FutureImg2ImgPipeline") == "img2img"
    assert task_told_by_class_name("FutureInpaintPipeline") == "inpaint"
    assert task_told_by_class_name("FutureControlNetPipeline") == "controlnet"
    assert task_told_by_class_name("FutureControlNetInpaintPipeline") is None
    assert task_told_by_class_name("FuturePipeline") is None
    mistaken = [cls for _, task, cls in ROWS if task_told_by_class_name(cls) not in (None, task)]
    assert mistaken == []
    assert isinstance(family_of_pipeline("FluxPipeline"), Family)


# What a folder of each family tells, beside what is the same for all.
TOLD: dict[str, dict[str, Any]] = {
    "chroma": {
        "tasks": ("txt2img", "img2img"),
        "denoiser_class": "ChromaTransformer2DModel",
        "size_multiple": 16,
        "height": 1024,
        "head_sizes": (16,),
        "steps": 35,
        "guidance": 5.0,
    },
    "lumina2": {
        "tasks": ("txt2img",),
        "size_multiple": 16,
        "height": 128,
        "head_sizes": (24,),
        "repeated_blocks": ("Lumina2TransformerBlock",),
    },
    "auraflow": {"tasks": ("txt2img",), "size_multiple": 8, "height": 1024, "guidance": 3.5},
    "kandinsky3": {
        "tasks": ("txt2img", "img2img"),
        "denoiser": "unet",
        "vae": "movq",
        "size_multiple": 64,
        "head_sizes": (4,),
        "steps": 25,
    },
    "mochi": {
        "tasks": ("txt2video",),
        "size_multiple": 16,
        "height": 480,
        "width": 848,
        "frames": 19,
        "frame_step": 6,
        "fps": 30,
    },
    "wan_i2v": {
        "tasks": ("img2video",),
        "size_multiple": 16,
        "frames": 81,
        "frame_step": 4,
        "fps": 16,
        "limits": Limits(fp16_vae_overflows=False, vae_float32=True),
    },
}
SIZE, FRAMES = 64, {"mochi": 7, "wan_i2v": 5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with the saved pipeline of a family, built once."""
    from support.any_pipelines import build

    places: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in places:
            places[name] = tmp_path_factory.mktemp(name)
            build(name).save_pretrained(places[name], safe_serialization=True)
        return places[name]

    return folder


def local(folder: Path, **values: Any) -> Model:
    data = yaml.safe_load((shipped_conf() / "model" / "local.yaml").read_text(encoding="utf-8"))
    return Model.from_plain(with_model_facts({**data, "path": str(folder), **values}, Path.cwd()))


@pytest.mark.parametrize("name", TOLD)
def test_a_folder_tells_what_it_is(name: str, folders: Callable[[str], Path]) -> None:
    model = local(folders(name))
    expected = dict(TOLD[name])
    assert model.pipelines.tasks == expected.pop("tasks")
    assert model.task == model.pipelines.tasks[0]
    assert {key: getattr(model, key) for key in expected} == expected
    assert model.text_encoders == ("text_encoder",)
    assert model.dtype == "float32"
    assert all(count for count in model.parameters.model_dump().values())


@pytest.fixture
def ftfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of the package that mends broken Unicode, which diffusers imports where it can."""
    from diffusers.pipelines.wan import pipeline_wan_i2v

    (tmp_path / "ftfy.py").touch()
    (tmp_path / "ftfy-6.3.dist-info").mkdir()
    (tmp_path / "ftfy-6.3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ftfy\nVersion: 6.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=str), raising=False)


@pytest.mark.skipif(not unmet_packages(["ftfy"]), reason="ftfy is here")
def test_a_package_that_is_not_here_is_a_refusal(folders: Callable[[str], Path]) -> None:
    with pytest.raises(Refusal, match="WanImageToVideoPipeline needs ftfy: pip install 'ftfy'"):
        load_pipeline(local(folders("wan_i2v")), "img2video", device="cpu", dtype={})


@pytest.mark.usefixtures("ftfy")
@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_folder_loads_and_draws(name: str, weights: str, folders: Callable[[str], Path]) -> None:
    import numpy as np
    import torch
    from PIL.Image import new

    torch.set_num_threads(1)
    model = local(folders(name), weights=weights)
    pipe = load_pipeline(model, model.task, device="cpu", dtype={"default": torch.float32})
    assert type(pipe).__name__ == getattr(model.pipelines, model.task)
    arguments: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "output_type": "np"}
    if name in FRAMES:
        arguments["num_frames"] = FRAMES[name]
    if model.task == "img2video":
        assert pipe.image_encoder is not None
        assert pipe.image_processor is not None
        arguments["image"] = new("RGB", (SIZE, SIZE), "red")
    drawn = np.asarray(pipe(prompt="a fox", generator=torch.Generator().manual_seed(0), **arguments)[0][0])
    assert drawn.shape[-3:] == (SIZE, SIZE, 3)
    assert np.isfinite(drawn).all()
    assert drawn.std() > 0


def test_pretrained_weights_are_those_that_were_saved(folders: Callable[[str], Path]) -> None:
    import torch
    from support.any_pipelines import build

    model = local(folders("chroma"))
    pipe, saved = load_pipeline(model, "img2img", device="cpu", dtype={"default": torch.float32}), build("chroma")
    for name in ("transformer", "vae", "text_encoder"):
        one, other = getattr(pipe, name).state_dict(), getattr(saved, name).state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    expected = {name: getattr(saved, name).num_parameters() for name in ("transformer", "text_encoder", "vae")}
    assert list(model.parameters.model_dump().values()) == list(expected.values())


def test_an_unknown_class_is_asked_for_by_key(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("auraflow"), tmp_path / "mine"))
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "BrandNewPipeline"}))
    with pytest.raises(UsageError, match=r"say it with model\.pipelines\.txt2img=BrandNewPipeline, or another task"):
        local(folder)
    known = local(folder, pipelines={"txt2img": "AuraFlowPipeline"})  # a class of a family tells the rest
    assert (known.pipelines.tasks, known.task, known.steps, known.guidance) == (("txt2img",), "txt2img", 50, 3.5)
    given = {"pipelines": {"txt2img": "BrandNewPipeline"}}
    with pytest.raises(UsageError, match=r"model\.steps, model\.guidance cannot be read .* such as model\.height=512"):
        local(folder, **given)
    model = local(folder, **given, steps=2, guidance=3.0)
    assert (model.pipelines.tasks, model.height, model.size_multiple) == (("txt2img",), 64, 8)
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "BrandNewImg2ImgPipeline"}))
    assert local(folder, steps=2, guidance=3.0).pipelines.tasks == ("img2img",)


def test_a_unet_that_reads_more_than_latents_has_one_task(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packaged_architecture("sd15_inpaint", tiny=True), tmp_path / "mine"))
    assert local(folder, weights="random").pipelines.tasks == ("inpaint",)
    assert local(packaged_architecture("sd15", tiny=True), weights="random").pipelines.tasks == (
        "txt2img",
        "img2img",
        "inpaint",
    )


def rows(diffopt: Callable[..., Any], tmp_path: Path, folder: Path, *words: str) -> list[dict[str, Any]]:
    """What ``diffopt run`` makes of a saved pipeline."""
    common = ("model=local", f"model.path={folder}", "hardware=cpu", "measure=quick", "precision=fp32", "study=any")
    diffopt("run", "-m", *common, "workload.height=64", "workload.width=64", *words)
    paths = sorted((tmp_path / "studies").rglob("result.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


@pytest.mark.slow
def test_any_pipeline_runs_compiled_and_quantized(
    folders: Callable[[str], Path], diffopt: Callable[..., Any], tmp_path: Path
) -> None:
    found = rows(
        diffopt, tmp_path, folders("auraflow"), "workload.steps=2", "compile=none,default", "quant=none,int8_dynamic"
    )
    assert [(row["status"], row["reason"]) for row in found if row["status"] != "ok"] == []
    effects = [{effect["group"] for effect in row["effects"]} for row in found]
    assert sorted(("compile" in names, "quant" in names) for names in effects) == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chroma", ("workload=txt2img,img2img", "workload.steps=6")),
        ("kandinsky3", ("workload=txt2img,img2img", "workload.steps=4")),
        ("lumina2", ("quant=none,int8_dynamic", "workload.steps=2")),
        ("mochi", ("workload.frames=7", "workload.steps=2")),
    ],
)
def test_any_pipeline_runs_in_its_tasks(
    name: str, words: tuple[str, ...], folders: Callable[[str], Path], diffopt: Callable[..., Any], tmp_path: Path
) -> None:
    found = rows(diffopt, tmp_path, folders(name), *words)
    assert found
    assert [(row["status"], row["reason"]) for row in found if row["status"] != "ok"] == []
