"""Parts that do not fit together, or that a key names in vain, are told when a recipe is planned. No torch needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.machine.paths import shipped_conf
from diffopt.models.classes import SEVERAL
from diffopt.models.resolve import packaged_architecture, with_model_facts
from diffopt.models.sizes import largest_size_of_model_class
from diffopt.recipe.plan import Plan, make_plan
from diffopt.schema.model import Model

Copy = Callable[..., Path]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A copy of a family's tiny configs, with changes by file."""

    def made(name: str, **changes: dict[str, Any]) -> Path:
        folder = Path(shutil.copytree(packaged_architecture(name, tiny=True), tmp_path / name))
        for file, values in changes.items():
            edit(folder / f"{file.replace('__', '/')}.json", **values)
        return folder

    return made


def facts(folder: Path, **values: Any) -> Model:
    data = yaml.safe_load((shipped_conf() / "model" / "local.yaml").read_text(encoding="utf-8"))
    given = {**data, "weights": "random", "path": str(folder), **values}
    return Model.from_plain(with_model_facts(given, Path.cwd()))


def plan(folder: Path, *words: str) -> Plan:
    chosen = ("model=local", f"model.path={folder}", "model.weights=random", "hardware=cpu", "measure=quick")
    (request,) = compose_requests([*chosen, *words])
    return make_plan(request.cell)


@pytest.mark.parametrize(
    ("key", "value"), [("vae", "somebody/another-vae"), ("vae", "scheduler"), ("text_encoders", ["text_encoder_2"])]
)
def test_a_key_that_names_no_part_is_refused_with_the_parts_that_there_are(key: str, value: Any, copy: Copy) -> None:
    with pytest.raises(UsageError, match=rf"model\.{key}=.*has no such part.*text_encoder, unet, vae.*save_pretrained"):
        facts(copy("sd15"), **{key: value})


@pytest.mark.parametrize("name", ["sd15", "sd_controlnet_canny"])
def test_a_key_that_names_another_class_is_refused(name: str, copy: Copy) -> None:
    folder = copy(name)
    with pytest.raises(UsageError, match=r"model\.denoiser_class=FluxTransformer2DModel: .*unet is a UNet2DCondition"):
        facts(folder, denoiser="unet", denoiser_class="FluxTransformer2DModel")
    if name == "sd15":
        return
    other = {"class_name": "SD3ControlNetModel", "id": None, "revision": None, "variant": None}
    with pytest.raises(UsageError, match=r"model\.controlnet\.class_name=SD3ControlNetModel: .*ControlNetModel"):
        facts(folder, controlnet=other)


@pytest.mark.parametrize("class_name", SEVERAL)
def test_several_models_in_one_component_are_refused_by_name(class_name: str, copy: Copy) -> None:
    folder = copy("sd_controlnet_canny", model_index={"controlnet": ["diffusers", class_name]})
    with pytest.raises(
        UsageError, match=rf"controlnet is a {class_name}, several .*register_modules\(controlnet=pipe\."
    ):
        facts(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8", None])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_were_quantized_elsewhere_are_refused(method: str | None, part: str, copy: Copy) -> None:
    stored = {} if method is None else {"quant_method": method, "load_in_4bit": True}
    folder = Path(copy("sd15", **{f"{part}__config": {"quantization_config": stored}}))
    whole = packaged_architecture("tiny")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        shutil.copy(whole / f"{name}.safetensors", folder / f"{name}.safetensors")
    for path in whole.joinpath("tokenizer").iterdir():
        shutil.copy(path, folder / "tokenizer")
    said = method or "what it does not name"
    with pytest.raises(UsageError, match=rf"{part}/config\.json: its weights were quantized by {said} before"):
        facts(folder, weights="pretrained")
    assert facts(folder).denoiser == "unet"  # random weights are not quantized
    edit(folder / part / "config.json", quantization_config={"quant_method": "torchao"})
    assert facts(folder, weights="pretrained").denoiser == "unet"  # as save_quantized writes them


REFINER = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}


def refiner(copy: Copy, index: dict[str, Any], *, numbers: int = 5) -> Path:
    """SDXL's refiner has no first text encoder, and its UNet is told a score."""
    folder = copy("sdxl", model_index={"text_encoder": [None, None], "tokenizer": [None, None], **index})
    unet, text = (json.loads((folder / name / "config.json").read_text()) for name in ("unet", "text_encoder_2"))
    total = text["projection_dim"] + numbers * unet["addition_time_embed_dim"]
    edit(folder / "unet" / "config.json", projection_class_embeddings_input_dim=total)
    return folder


def test_a_refiner_does_not_draw_from_text(copy: Copy) -> None:
    model = facts(refiner(copy, REFINER))
    assert model.pipelines.tasks == ("img2img", "inpaint")
    assert model.task == "img2img"
    (reason,) = plan(Path(str(model.path)), "workload=txt2img").reasons
    assert "has no pipeline for txt2img; choose workload=img2img or workload=inpaint" in reason


def test_the_base_model_draws_in_all_tasks(copy: Copy) -> None:
    assert facts(copy("sdxl")).pipelines.tasks == ("txt2img", "img2img", "inpaint")


@pytest.mark.parametrize(("numbers", "said"), [(5, False), (6, True)])
def test_an_index_that_belies_its_unet_is_told(numbers: int, said: bool, copy: Copy) -> None:
    folder = refiner(copy, {**REFINER, "requires_aesthetics_score": said}, numbers=numbers)
    with pytest.raises(
        UsageError, match=rf"requires_aesthetics_score={str(said).lower()}, but its UNet was trained wi"
    ):
        facts(folder)


@pytest.mark.parametrize(
    ("class_name", "config", "expected"),
    [
        ("SD3Transformer2DModel", {"pos_embed_max_size": 192}, (384, 384, False)),
        ("SD3ControlNetModel", {"pos_embed_max_size": 96}, (192, 192, False)),
        ("AuraFlowTransformer2DModel", {"pos_embed_max_size": 4096}, (128, 128, False)),
        ("Lumina2Transformer2DModel", {"axes_lens": [300, 64, 32]}, (128, 64, False)),
        ("WanTransformer3DModel", {"rope_max_seq_len": 1024}, (2048, 2048, False)),
        ("Kandinsky5Transformer3DModel", {}, (256, 256, False)),
        (
            "CogVideoXTransformer3DModel",
            {"use_learned_positional_embeddings": True, "sample_height": 60, "sample_width": 90},
            (60, 90, True),
        ),
        ("CogVideoXTransformer3DModel", {"sample_height": 60, "sample_width": 90}, None),
        ("SD3Transformer2DModel", {}, None),
        ("UNet2DConditionModel", {"pos_embed_max_size": 192}, None),
        ("NewTransformer2DModel", {"pos_embed_max_size": 192}, None),
    ],
)
def test_tables_of_positions(class_name: str, config: dict[str, Any], expected: tuple[int, int, bool] | None) -> None:
    found = largest_size_of_model_class(class_name, config, 2)
    assert (None if found is None else tuple(found.values())) == expected


@pytest.mark.parametrize("value", [0, "many", [1], True])
def test_what_is_no_length_of_a_table_is_told(value: Any, copy: Copy) -> None:
    with pytest.raises(UsageError, match=r"transformer/config\.json: pos_embed_max_size must be a positive number"):
        facts(copy("sd35_medium", transformer__config={"pos_embed_max_size": value}))


def test_a_size_beyond_the_table_is_refused_and_one_within_is_not(copy: Copy) -> None:
    folder = copy("sd35_medium", transformer__config={"pos_embed_max_size": 8})
    limit = facts(folder).size_limit
    assert limit is not None
    assert (limit.height, limit.width, limit.exact) == (8 * 2 * 8, 8 * 2 * 8, False)
    assert plan(folder, "workload.height=128", "workload.width=64").reasons == []
    (reason,) = plan(folder, "workload.height=64", "workload.width=144").reasons
    assert "workload.width=144" in reason
    assert "has no positions beyond a width of 128 pixels; use 128 or less" in reason


def test_more_steps_than_a_model_was_trained_on_are_refused(copy: Copy) -> None:
    folder = copy("sd15", scheduler__scheduler_config={"num_train_timesteps": 40})
    assert facts(folder).train_timesteps == 40
    assert plan(folder, "workload.steps=40").reasons == []
    (reason,) = plan(folder, "workload.steps=41").reasons
    assert "was trained on 40 timesteps, and a sampler has no more steps than those; use 39 or less" in reason
    usual, flow = copy("sdxl"), copy("flux_dev")
    assert facts(usual).train_timesteps is None
    assert "trained on 1000 timesteps" in plan(usual, "workload.steps=1001").reasons[0]
    assert plan(flow, "workload.steps=1001").reasons == [], "a flow is divided into as many steps as one likes"


def test_one_size_alone_was_learned(copy: Copy) -> None:
    learned = {"use_learned_positional_embeddings": True, "sample_height": 8, "sample_width": 16}
    folder = copy("cogvideox_5b", transformer__config=learned)
    assert plan(folder, "workload.height=64", "workload.width=128", "workload.frames=5").reasons == []
    (reason,) = plan(folder, "workload.height=64", "workload.width=64", "workload.frames=5").reasons
    assert "has no positions for another width than 128 pixels; use 128" in reason


@pytest.mark.parametrize("name", ["sdxl", "sd35_medium", "flux_dev", "pixart_sigma", "z_image", "wan21_t2v_1_3b"])
def test_bare_embeddings_are_refused_where_more_is_asked_for(name: str, copy: Copy) -> None:
    folder = copy(name)
    asked = ("model.embeddings={tokens: 8, width: 32}", "workload.height=64", "workload.width=64")
    told = [reason for reason in plan(folder, *asked).reasons if "model.embeddings" in reason]
    assert len(told) == 1
    assert "asks for more than the embeddings of the prompts" in told[0]


def test_bare_embeddings_are_enough_for_others(copy: Copy) -> None:
    asked = ("model.embeddings={tokens: 8, width: 32}", "workload.height=64", "workload.width=64")
    assert plan(copy("sd15"), *asked).reasons == []


@pytest.mark.parametrize(
    ("sampler", "refused"), [("lcm", False), ("dpmpp_2m", True), ("euler", True), ("ddim", True), ("tcd", True)]
)
@pytest.mark.parametrize("cls", ["LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"])
def test_an_lcm_pipeline_takes_only_what_gives_it_the_denoised_latents(
    sampler: str, refused: bool, cls: str, copy: Copy
) -> None:
    folder = copy("sd15", model_index={"_class_name": cls, "scheduler": ["diffusers", "LCMScheduler"]})
    told = plan(folder, f"scheduler={sampler}", "workload.height=64", "workload.width=64").reasons
    assert bool(told) == refused
    assert all(f"scheduler={sampler}" in reason and "LCMScheduler does" in reason for reason in told)


def test_pixart_takes_the_denoised_latents_of_its_only_step(copy: Copy) -> None:
    folder = copy("pixart_sigma", model_index={"_class_name": "PixArtAlphaPipeline"})
    size = ("workload.height=64", "workload.width=64")
    assert plan(folder, "scheduler=dpmpp_2m", "workload.steps=2", *size).reasons == []
    (reason,) = plan(folder, "scheduler=dpmpp_2m", "workload.steps=1", *size).reasons
    assert "PixArtAlphaPipeline draws the denoised latents of a step, which this one does not give" in reason
    assert plan(folder, "scheduler=euler", "workload.steps=1", *size).reasons == []
