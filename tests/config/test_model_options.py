"""conf/model: every option is complete, agrees with its files and with diffusers, and so do its tiny configs."""

from __future__ import annotations

import inspect
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.places import REPO
from support.tiny import every_task, families

from diffopt.config import Composer
from diffopt.config.request import Request
from diffopt.config.resolve import Resolver
from diffopt.models.resolve import PACKAGED, TINY
from diffopt.models.tiny import with_tiny_model_values
from diffopt.recipe.plan import make_plan
from diffopt.schema.model import TASKS, Call, Limits, Model, Parameters, Pipelines
from diffopt.schema.record import Frozen

CONF = REPO / "conf" / "model"
FROM_FILES = {"local", "hub"}  # filled in from what the user names
NAMES = sorted({path.stem for path in CONF.glob("*.yaml")} - FROM_FILES)
SMALL = [f"{name}/{TINY}" for name in families()]  # the same options with weights: tiny
FAMILIES = [*NAMES, *SMALL]
SECTIONS: dict[str, type[Frozen]] = {"parameters": Parameters, "limits": Limits, "pipelines": Pipelines, "call": Call}
BARE = re.compile(r"(name: |defaults: |denoiser_class: |[a-z_]+:$)")  # lines that need no comment


def raw(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    return data


@cache
def composer() -> Composer:
    return Composer()


@cache
def resolver() -> Resolver:
    return Resolver(composer())


@cache
def composed(name: str) -> dict[str, Any]:
    """The option as YAML gives it, with what it extends, and with what its tiny configs change."""
    option, _, small = name.partition("/")
    data: dict[str, Any] = composer().compose([f"model={option}"]).data["model"]
    return with_tiny_model_values({**data, "weights": small}, frozenset()) if small else data


@cache
def request_of(name: str) -> Request:
    option, _, small = name.partition("/")
    return resolver().request(
        composer().compose([f"model={option}", "hardware=cpu", *([f"model.weights={small}"] if small else [])])
    )


def model(name: str) -> Model:
    return request_of(name).cell.recipe.model


def tasks(name: str) -> dict[str, str]:
    """The option's tasks with their pipeline classes."""
    return {task: cls for task, cls in composed(name)["pipelines"].items() if cls is not None}


def folder(name: str) -> Path:
    return PACKAGED / str(composed(name)["architecture"]) / name.partition("/")[2]


def index(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder(name) / "model_index.json").read_text(encoding="utf-8"))
    return data


def config_of(name: str, component: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder(name) / component / "config.json").read_text(encoding="utf-8"))
    return data


@cache
def meta(place: Path) -> dict[str, Any]:
    """Components with weights, without their values."""
    from diffopt.models.random.weights import meta_modules

    return meta_modules(place)


@pytest.mark.parametrize("name", NAMES)
def test_four_lines_say_what_it_is(name: str) -> None:
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines[0]) < 90
    assert [line.split(":")[0] for line in lines[1:4]] == ["# What", "# Helps", "# Hurts"]
    assert lines[4].startswith(("name: ", "defaults: "))
    assert composed(name)["name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_a_comment(name: str) -> None:
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[4:]
    assert [line for line in lines if "  # " not in line and not BARE.match(line)] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_required_key_is_missing_and_none_is_unknown(name: str) -> None:
    """An option that extends no other lists the keys itself."""
    own = raw(name)
    data = composed(name) if "defaults" in own else own
    required = {key for key, field in Model.model_fields.items() if field.is_required()}
    assert required - data.keys() == set()
    assert data.keys() - Model.model_fields.keys() == set()
    for section, record in SECTIONS.items():
        values = data.get(section) or {}
        assert {key for key, field in record.model_fields.items() if field.is_required()} - values.keys() == set()
        assert values.keys() - record.model_fields.keys() == set()
    assert list(data["pipelines"]) == [task for task in TASKS if task in data["pipelines"]]
    assert data["task"] in data["pipelines"]


@pytest.mark.parametrize("name", FAMILIES)
def test_it_composes_and_plans(name: str) -> None:
    """Size, frames and stages are checked by the plan."""
    request = request_of(name)
    plan = make_plan(request.cell)
    assert plan.status == "ok", plan.reasons
    assert request.cell.workload.task == composed(name)["task"]
    assert request.cell.recipe.model.name == name.partition("/")[0]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tiny"])
def test_a_revision_is_a_commit_or_shown_as_unpinned(name: str) -> None:
    revision = composed(name)["revision"]
    assert revision == "main" or re.fullmatch("[0-9a-f]{40}", revision)
    assert re.search(r"^revision: main +# unpinned|^revision: [0-9a-f]{40} +# https", _text(name), re.MULTILINE)


def _text(name: str) -> str:
    return (CONF / f"{name}.yaml").read_text(encoding="utf-8")


def test_every_family_has_tiny_configs() -> None:
    """All but the one that is small itself; so a sweep over every model runs with model.weights=tiny."""
    assert set(families()) == set(NAMES) - {"tiny"}


@pytest.mark.parametrize("name", families())
def test_tiny_weights_change_the_size_and_nothing_that_a_family_is(name: str) -> None:
    full, small = model(name), model(f"{name}/{TINY}")
    assert (small.weights, small.dtype) == (TINY, "float32")
    assert small.content is not None
    assert set(small.parameters.model_dump().values()) == set(small.activations.model_dump().values()) == {None}
    assert max(small.height, small.width) <= 128
    for field in ("name", "id", "revision", "variant", "pipelines", "task", "denoiser", "denoiser_class", "vae"):
        assert getattr(small, field) == getattr(full, field)
    for field in ("text_encoders", "size_multiple", "frame_step", "limits", "prompt", "guidance", "quant_skip"):
        assert getattr(small, field) == getattr(full, field)


@pytest.mark.parametrize("name", every_task())
def test_every_task_of_every_family_can_be_planned_as_it_comes(name: str) -> None:
    """The customary steps are enough for img2img, where fewer would begin at pure noise."""
    option, _, task = name.partition(" ")
    words = [f"model={option}", "model.weights=tiny", "hardware=cpu", *([f"workload={task}"] if task else [])]
    request = resolver().request(composer().compose(words))
    assert make_plan(request.cell).reasons == []


def test_every_architecture_has_an_option() -> None:
    folders = {path.parent.name for path in PACKAGED.glob("*/model_index.json")}
    assert {composed(name)["architecture"] for name in NAMES} == folders


@pytest.mark.parametrize("name", FAMILIES)
def test_an_option_agrees_with_its_index(name: str) -> None:
    data, said = composed(name), index(name)
    assert said[data["denoiser"]] == ["diffusers", data["denoiser_class"]]
    assert said["_class_name"] in data["pipelines"].values()
    assert data["vae"] == ("vae" if "vae" in said else None)
    encoders = [key for key in said if key.startswith("text_encoder")]
    assert data["text_encoders"] == ([] if data.get("embeddings") else encoders)
    controlnet = data.get("controlnet")
    assert said.get("controlnet") == (["diffusers", controlnet["class_name"]] if controlnet else None)


@pytest.mark.parametrize("name", FAMILIES)
def test_pipeline_classes_are_made_of_its_parts_and_take_its_arguments(name: str) -> None:
    import diffusers

    data, given = composed(name), set(index(name))
    arguments = {key for key, value in data.get("call", {}).items() if value is not None}
    arguments.add(data.get("guidance_argument", "guidance_scale"))
    for task, pipeline in tasks(name).items():
        cls = getattr(diffusers, pipeline)
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        needed = {part.name for part in parameters if part.default is part.empty and part.kind is not part.VAR_KEYWORD}
        assert needed - given == set(), (task, pipeline)
        assert arguments - set(inspect.signature(cls.__call__).parameters) == set(), (task, pipeline)


def test_a_unet_that_draws_inside_a_mask_has_the_channels_for_it() -> None:
    """Its pipelines refuse others than 4, the latent's, and 9, with the mask and what is left of the picture."""
    names = [name for name in FAMILIES if "inpaint" in tasks(name) and composed(name)["denoiser"] == "unet"]
    assert {"sd15", "sd15_inpaint", "sdxl"} <= set(names)
    assert [name for name in names if config_of(name, "unet")["in_channels"] not in (4, 9)] == []


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_architecture(name: str) -> None:
    """What is counted here is compared with published figures in test_architectures.py."""
    data, sizes = composed(name), _sizes(folder(name))
    assert data["parameters"] == {
        "denoiser": sizes[data["denoiser"]] + sizes.get("controlnet", 0),
        "text_encoders": sum(sizes[encoder] for encoder in data["text_encoders"]),
        "vae": sizes[data["vae"]] if data["vae"] else 0,
    }


def _sizes(place: Path) -> dict[str, int]:
    return {name: sum(p.numel() for p in module.parameters()) for name, module in meta(place).items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_head_sizes_are_those_of_the_attention_modules(name: str) -> None:
    """Linear attention has no kernels to choose from, so its heads are not listed."""
    data, modules = model(name), meta(folder(name))
    assert data.head_sizes == tuple(sorted(_heads(modules[data.denoiser])))
    vae = _heads(modules[data.vae]) if data.vae else set()
    assert ({data.vae_head_size} if data.vae_head_size else set()) == vae


def _heads(module: Any) -> set[int]:
    found = set()
    for part in module.modules():
        processor = type(getattr(part, "processor", None)).__name__
        if isinstance(getattr(part, "heads", None), int) and "Linear" not in processor:
            found.add(part.to_q.out_features // part.heads if hasattr(part, "to_q") else part.inner_dim // part.heads)
        elif type(part).__name__.endswith("AttentionBlock") and hasattr(part, "to_qkv"):  # convolutions, one head
            found.add(part.to_qkv.in_channels)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_repeated_blocks_are_in_the_denoiser(name: str) -> None:
    """Null where diffusers declares usable ones."""
    blocks, denoiser = (
        composed(name)["repeated_blocks"],
        meta(folder(name))[composed(name)["denoiser"]],
    )
    present = {type(part).__name__ for part in denoiser.modules()}
    assert (blocks is None) == bool(present.intersection(denoiser._repeated_blocks or ()))
    assert set(blocks or ()) <= present


def test_embeddings_have_the_width_of_the_text_encoder() -> None:
    widths = {name: composed(name)["embeddings"]["width"] for name in FAMILIES if "embeddings" in composed(name)}
    assert widths == {name: config_of(name, "unet")["encoder_hid_dim"] for name in widths}
    assert set(widths) & set(NAMES) == {f"deepfloyd_if{end}" for end in ("", "_i_m", "_ii_m")}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_size_multiple_is_what_the_parts_need(name: str) -> None:
    """The VAE's factor times the patch size; 8 for UNets, which halve three times or are refused other sizes."""
    data = composed(name)
    config = config_of(name, data["denoiser"])
    if data["denoiser"] == "unet":
        assert data["size_multiple"] == (16 if "upscale" in tasks(name) and data["vae"] else 8)
        return
    vae = config_of(name, "vae")
    assert data["size_multiple"] == _factor(vae) * _patch(data["denoiser_class"], config)


def _factor(vae: dict[str, Any]) -> int:
    levels = vae.get("encoder_block_out_channels") or vae.get("block_out_channels") or vae["dim_mult"]
    if "spatio_temporal_scaling" in vae:  # LTX: which levels halve, after patches
        return int(2 ** sum(vae["spatio_temporal_scaling"]) * vae["patch_size"])
    return int(2 ** (len(levels) - 1))


def _patch(denoiser_class: str, config: dict[str, Any]) -> int:
    if denoiser_class in ("FluxTransformer2DModel", "Flux2Transformer2DModel"):
        return 2  # its pipelines pack 2x2 latent pixels into a token; the config says 1
    patch = config.get("patch_size", config.get("all_patch_size"))
    return int(patch[-1]) if isinstance(patch, list) else int(patch or 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_video_has_a_length_that_the_vae_can_decode(name: str) -> None:
    data = composed(name)
    draws_video = any(task.endswith("2video") for task in tasks(name))
    assert {key: key in data for key in ("frames", "frame_step", "fps")} == dict.fromkeys(
        ("frames", "frame_step", "fps"), draws_video
    )
    if draws_video:
        vae = config_of(name, "vae")
        halvings = vae.get("temperal_downsample") or vae.get("spatio_temporal_scaling", [])  # by level
        assert data["frame_step"] == vae.get("temporal_compression_ratio", 2 ** sum(halvings))
        assert data["frames"] % data["frame_step"] == 1
