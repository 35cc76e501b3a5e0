"""pipeline.load: exact classes, dtypes per component, and one clear sentence where the weights cannot be had."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffopt.config import Composer
from diffopt.config.resolve import compose_requests
from diffopt.errors import DiffoptError, Refusal, UsageError
from diffopt.models.prefetch import Fetched, Target
from diffopt.models.resolve import PACKAGED, with_model_facts
from diffopt.models.tiny import with_tiny_model_values
from diffopt.pipeline import load
from diffopt.pipeline.failure import describe_pipeline_error
from diffopt.pipeline.load import load_pipeline
from diffopt.schema.model import Model

COMMIT = "c" * 40
FLOAT32 = {"default": torch.float32}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(name, **values):
    data = {**Composer().compose([f"model={name}"]).data["model"], **values}
    data = with_tiny_model_values(data, frozenset())
    return Model.from_plain(with_model_facts(data, Path.cwd()))


@pytest.mark.parametrize("values", [{}, {"weights": "random"}], ids=["pretrained", "random"])
def test_tiny_loads_with_its_own_classes_and_dtypes(values, capfd):
    dtype = {"default": torch.bfloat16, "vae": torch.float32}
    pipe = load_pipeline(model("tiny", **values), "txt2img", device="cpu", dtype=dtype)
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.vae.dtype == torch.float32
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.bfloat16
    assert pipe.safety_checker is None
    assert not pipe.unet.training
    pipe("a dot", num_inference_steps=1, output_type="latent")
    assert "%|" not in capfd.readouterr().err  # no progress bar


def test_local_folder_loads_and_bars_are_as_they_were(tmp_path):
    from diffusers.utils import logging

    assert logging.is_progress_bar_enabled()
    pipe = load_pipeline(model("local", path=str(PACKAGED / "tiny")), "txt2img", device="cpu", dtype=FLOAT32)
    assert pipe.unet.dtype == torch.float32
    assert logging.is_progress_bar_enabled()


def test_random_weights_are_not_the_trained_ones():
    trained, drawn = (
        load_pipeline(model("tiny", weights=weights), "txt2img", device="cpu", dtype=FLOAT32).unet.conv_in.weight
        for weights in ("pretrained", "random")
    )
    assert trained.shape == drawn.shape
    assert not torch.allclose(trained, drawn, atol=0.1)


@pytest.mark.parametrize("name", ["NoSuchPipeline", "AutoencoderKL", "utils"])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_what_is_no_pipeline_class_of_this_diffusers_is_a_refusal(name, weights):
    mine = model("tiny", pipelines={"txt2img": name}, weights=weights)
    with pytest.raises(Refusal, match=f"no pipeline class {name}"):
        load_pipeline(mine, "txt2img", device="cpu", dtype=FLOAT32)


def test_a_folder_that_vanished_is_an_error(tmp_path):
    mine = model("local", path=str(PACKAGED / "tiny")).model_copy(update={"path": str(tmp_path)})
    with pytest.raises(DiffoptError, match="folder is not complete") as raised:
        load_pipeline(mine, "txt2img", device="cpu", dtype=FLOAT32)
    assert not isinstance(raised.value, Refusal)


def spoiled(folder, name, **changes):
    """The tiny model with changes to one config that only the libraries can judge."""
    folder = Path(shutil.copytree(PACKAGED / "tiny", folder / "mine"))
    config = folder / name
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return model("local", path=str(folder))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("unet/config.json", {"in_channels": 5}),
        ("text_encoder/config.json", {"hidden_size": "wide"}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "mine"}),
        ("model_index.json", {"scheduler": ["diffusers", "NoSuchScheduler"]}),
    ],
)
def test_what_only_the_libraries_find_is_an_error_that_says_where(name, changes, tmp_path):
    mine = spoiled(tmp_path, name, **changes)
    with pytest.raises(Exception, match=r".") as raised:  # of whatever type the library has
        load_pipeline(mine, "txt2img", device="cpu", dtype=FLOAT32)
    assert not isinstance(raised.value, Refusal)
    assert f"model=local ({tmp_path}/mine)" in describe_pipeline_error(raised.value)


def test_a_missing_package_is_a_refusal(monkeypatch):
    from diffusers import StableDiffusionPipeline

    def from_pretrained(folder, **kwargs):
        raise ImportError("requires the sentencepiece library")

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", from_pretrained)
    with pytest.raises(Refusal, match=r"model=tiny \(tiny\) needs a package that is not here: .*sentencepiece"):
        load_pipeline(model("tiny"), "txt2img", device="cpu", dtype=FLOAT32)


def test_what_is_asked_of_diffusers(monkeypatch):
    from diffusers import StableDiffusionPipeline

    asked = {}

    def from_pretrained(folder, **kwargs):
        asked.update(kwargs, folder=folder)
        raise OSError("disk\nfull")

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", from_pretrained)
    with pytest.raises(DiffoptError, match=r"cannot be loaded: disk full"):
        load_pipeline(model("tiny"), "txt2img", device="cpu", dtype=FLOAT32)
    assert (asked["folder"], asked["local_files_only"]) == (str(PACKAGED / "tiny"), True)
    assert (asked["use_safetensors"], asked["dtype"], asked["variant"]) == (True, FLOAT32, None)
    assert asked["safety_checker"] is None
    assert "trust_remote_code" not in asked


@pytest.mark.parametrize(("task", "cls"), [("img2img", "Img2Img"), ("inpaint", "Inpaint")])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_the_class_of_a_task_draws_with_the_same_files(task, cls, weights, tmp_path):
    from PIL.Image import new

    plain = load_pipeline(model("sd15", weights="tiny"), "txt2img", device="cpu", dtype=FLOAT32)
    plain.save_pretrained(tmp_path / "mine", safe_serialization=True)
    mine = model("local", path=str(tmp_path / "mine"), weights=weights)
    pipe = load_pipeline(mine, task, device="cpu", dtype=FLOAT32)
    assert type(pipe).__name__ == f"StableDiffusion{cls}Pipeline"
    pictures = {
        "image": new("RGB", (64, 64), "red"),
        **({"mask_image": new("L", (64, 64), 255)} if task == "inpaint" else {}),
    }
    assert pipe("a dot", **pictures, num_inference_steps=2, output_type="latent").images.isfinite().all()


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_with_prompt_embeddings_no_text_encoder_is_loaded(weights, tmp_path):
    folder = Path(shutil.copytree(PACKAGED / "tiny", tmp_path / "mine"))
    shutil.rmtree(folder / "text_encoder")  # not even looked at
    mine = model("local", path=str(folder), weights=weights, embeddings={"tokens": 2, "width": 64})
    assert mine.text_encoders == ()
    assert mine.parameters.text_encoders in (0, None)
    pipe = load_pipeline(mine, "txt2img", device="cpu", dtype=FLOAT32)
    assert pipe.text_encoder is None
    assert pipe.tokenizer is None
    assert pipe.unet is not None


def test_parts_that_the_index_leaves_empty_stay_empty(tmp_path):
    folder = Path(shutil.copytree(PACKAGED / "tiny", tmp_path / "mine"))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"], "safety_checker": ["x", "y"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipe = load_pipeline(model("local", path=str(folder)), "txt2img", device="cpu", dtype=FLOAT32)
    assert pipe.feature_extractor is pipe.safety_checker is pipe.image_encoder is None


def test_a_controlnet_in_the_folder_comes_along(tmp_path):
    drawn = load_pipeline(model("sd15_controlnet", weights="tiny"), "controlnet", device="cpu", dtype=FLOAT32)
    drawn.save_pretrained(tmp_path / "mine", safe_serialization=True)
    mine = model("local", path=str(tmp_path / "mine"))
    assert mine.controlnet.class_name == "ControlNetModel"
    assert mine.pipelines.tasks == ("controlnet",)
    assert mine.parameters.denoiser == drawn.unet.num_parameters() + drawn.controlnet.num_parameters()
    pipe = load_pipeline(mine, "controlnet", device="cpu", dtype=FLOAT32)
    assert torch.equal(pipe.controlnet.conv_in.weight, drawn.controlnet.conv_in.weight)


def test_a_controlnet_of_its_own_repository_is_put_beside(monkeypatch, tmp_path):
    drawn = load_pipeline(model("sd15_controlnet", weights="tiny"), "controlnet", device="cpu", dtype=FLOAT32)
    drawn.controlnet.save_pretrained(tmp_path / "control", safe_serialization=True)
    plain = load_pipeline(model("sd15", weights="tiny"), "txt2img", device="cpu", dtype=FLOAT32)
    plain.save_pretrained(tmp_path / "mine", safe_serialization=True)
    asked = []

    def fetch(target):
        asked.append(target)
        return Fetched(target, tmp_path / "control", 0)

    monkeypatch.setattr(load, "fetch_target_from_hub", fetch)
    mine = model(
        "local",
        path=str(tmp_path / "mine"),
        pipelines={"txt2img": "StableDiffusionPipeline", "controlnet": "StableDiffusionControlNetPipeline"},
        controlnet={"class_name": "ControlNetModel", "id": "org/control", "revision": COMMIT, "variant": None},
    )
    pipe = load_pipeline(mine, "controlnet", device="cpu", dtype={**FLOAT32, "controlnet": torch.bfloat16})
    assert torch.equal(pipe.controlnet.conv_in.weight, drawn.controlnet.conv_in.weight.bfloat16())
    assert pipe.unet.dtype == torch.float32
    assert asked == [Target("org/control", COMMIT, None, "ControlNetModel", False)]
    assert "controlnet" not in load_pipeline(mine, "txt2img", device="cpu", dtype=FLOAT32).components


def test_offline_without_a_cache_is_a_refusal(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Refusal, match="the hub cannot be reached"):
        load_pipeline(model("sd15"), "txt2img", device="cpu", dtype=FLOAT32)


@pytest.mark.parametrize("word", ["model.vae=nix", "model.text_encoders=[nix]"])
def test_a_part_that_the_pipeline_has_not_is_refused(word: str) -> None:
    words = ["model=sd15", "model.weights=tiny", "hardware=cpu"]
    with pytest.raises(UsageError, match=r"model.*=nix: .* has no such part; its parts with weights are text_encoder"):
        compose_requests([*words, word])
    (request,) = compose_requests(words)
    key = word.partition(".")[2].partition("=")[0]
    wrong = request.cell.recipe.model.model_copy(update={key: "nix" if key == "vae" else ("nix",)})
    with pytest.raises(Refusal, match=r"names nix, which StableDiffusionPipeline has not; its parts: .*unet, vae"):
        load_pipeline(wrong, "txt2img", device="cpu", dtype=FLOAT32)
