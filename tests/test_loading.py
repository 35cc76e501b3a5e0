"""diffopt.loading: exact classes, dtypes per component, and one clear sentence where the weights cannot be had."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import errors

from diffopt.errors import DiffoptError, Refusal
from diffopt.failure import describe
from diffopt.loading import load_pipeline
from diffopt.model_files import PACKAGED, resolve_model
from diffopt.recipe import Model

CONF = PACKAGED.parent.parent / "conf" / "model"
FLOAT32 = {"default": torch.float32}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(name, **values):
    data = {**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **values}
    return Model.model_validate_json(json.dumps(resolve_model(data, Path.cwd())))


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
    with pytest.raises(DiffoptError, match="cannot be loaded") as raised:
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
    assert f"model=local ({tmp_path}/mine)" in describe(raised.value)


def test_a_missing_package_is_a_refusal(monkeypatch):
    from diffusers import StableDiffusionPipeline

    def from_pretrained(**kwargs):
        raise ImportError("requires the sentencepiece library")

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", from_pretrained)
    with pytest.raises(Refusal, match=r"model=tiny \(tiny\) needs a package that is not here: .*sentencepiece"):
        load_pipeline(model("tiny"), "txt2img", device="cpu", dtype=FLOAT32)


def hub_error(kind):
    """The error that diffusers raises around one of the hub's own."""
    outer = OSError("Cannot load model: the model is not fully cached locally")
    outer.__cause__ = kind.__new__(kind, "from the hub")  # the real constructor wants an HTTP response
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (hub_error(errors.GatedRepoError), Refusal, "is gated on the hub"),
        (hub_error(errors.OfflineModeIsEnabled), Refusal, "the hub cannot be reached"),
        (hub_error(ConnectionError), Refusal, "the hub cannot be reached"),
        (hub_error(errors.RepositoryNotFoundError), DiffoptError, "is not on the hub, or is private"),
        (hub_error(errors.RevisionNotFoundError), DiffoptError, "no such revision"),
        (OSError("Could not find the necessary `safetensors` weights"), DiffoptError, "has no safetensors weights"),
        (ValueError("the `variant=fp16`, but no such modeling files"), DiffoptError, "no files of the variant fp16"),
        (OSError("disk\nfull"), DiffoptError, "cannot be loaded: disk full"),
    ],
)
def test_hub_errors_become_one_sentence(error, kind, message, monkeypatch):
    from diffusers import StableDiffusionPipeline

    asked = {}

    def from_pretrained(**kwargs):
        asked.update(kwargs)
        raise error

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", from_pretrained)
    with pytest.raises(DiffoptError, match=message) as raised:
        load_pipeline(model("sd15"), "txt2img", device="cpu", dtype=FLOAT32)
    assert type(raised.value) is kind  # a refusal is only for what this machine lacks
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("stable-diffusion-v1-5/stable-diffusion-v1-5 (revision main)")
    assert asked["use_safetensors"] is True
    assert (asked["revision"], asked["variant"], asked["dtype"]) == ("main", "fp16", FLOAT32)
    assert asked["safety_checker"] is None
    assert "trust_remote_code" not in asked


def test_offline_without_a_cache_is_a_refusal(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Refusal, match="the hub cannot be reached"):
        load_pipeline(model("sd15"), "txt2img", device="cpu", dtype=FLOAT32)
