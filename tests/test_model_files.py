"""diffopt.model_files and diffopt.weight_files: facts from files, content hashes, refusals. No torch needed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffopt.errors import UsageError
from diffopt.model_files import PACKAGED, model_folder, packaged, resolve_model
from diffopt.recipe import Limits, Model, Pipelines

CONF = PACKAGED.parent.parent / "conf" / "model"
TINY = PACKAGED / "tiny"


def option(name, **values):
    return {**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **values}


def as_model(data):
    return Model.model_validate_json(json.dumps(data))


@pytest.fixture
def folder(tmp_path):
    """A copy of the built-in model that a test may spoil."""
    return Path(shutil.copytree(TINY, tmp_path / "mine"))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["tiny", "sd15", "sdxl", "local"])
def test_options_list_every_field_with_a_comment(name):
    data = option(name)
    assert data.keys() == Model.model_fields.keys()
    assert data["pipelines"].keys() == Pipelines.model_fields.keys()
    assert data["limits"].keys() == Limits.model_fields.keys()
    lines = (CONF / f"{name}.yaml").read_text().splitlines()
    assert [line.split(":")[0] for line in lines[1:4]] == ["# What", "# Helps", "# Hurts"]
    bare = ("name: ", "pipelines:", "limits:", "  txt2img: S", "denoiser_class: U")
    assert all(" # " in line for line in lines[4:] if not line.startswith(bare))


@pytest.mark.parametrize("name", ["tiny", "sd15", "sdxl"])
def test_packaged_options_agree_with_their_files(name):
    """Where the YAML states what the files state too, it is the same."""
    given = option(name, weights="random")
    structure = ("denoiser", "denoiser_class", "vae", "text_encoders", "size_multiple", "height", "width")
    asked = {
        **given,
        **dict.fromkeys(structure),
        "limits": {"fp16_vae_overflows": None},
        "pipelines": {"txt2img": None},
    }
    resolved = resolve_model(asked, Path.cwd())
    for key in (*structure, "limits", "pipelines"):
        assert resolved[key] == given[key], key


def test_hub_models_have_no_content_and_random_ones_have_their_configs():
    assert resolve_model(option("sd15"), Path.cwd())["content"] is None
    assert model_folder(as_model(resolve_model(option("sd15"), Path.cwd()))) is None
    random = as_model(resolve_model(option("sd15", weights="random"), Path.cwd()))
    assert len(random.content) == 64
    assert random.pinned
    assert model_folder(random) == PACKAGED / "sd15"


def test_a_local_folder_is_read(folder):
    resolved = resolve_model(option("local", path="mine"), folder.parent)
    model = as_model(resolved)
    assert model.path == str(folder)
    assert model_folder(model) == folder
    assert (model.pipelines.txt2img, model.denoiser_class) == ("StableDiffusionPipeline", "UNet2DConditionModel")
    assert (model.height, model.width, model.size_multiple) == (64, 64, 8)
    assert (model.steps, model.guidance, model.dtype, model.parameters) == (50, 7.5, "float16", 1234251)
    assert resolve_model(resolved, Path("/nowhere")) == resolved


def test_given_values_win_over_files(folder):
    model = as_model(resolve_model(option("local", path=str(folder), height=128, dtype="bfloat16"), Path.cwd()))
    assert (model.height, model.width, model.dtype) == (128, 64, "bfloat16")


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_model(option("local", path="~/mine"), Path("/nowhere"))["path"] == str(folder)


def test_content_is_of_the_files_and_not_of_the_place(folder, tmp_path):
    def content(path, **values):
        return resolve_model(option("local", path=str(path), **values), tmp_path)["content"]

    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    before = content(folder)
    assert content(elsewhere) == before
    assert content(folder, weights="random") != before
    (elsewhere / "README.md").write_text("not part of the model")
    assert content(elsewhere) == before
    edit(elsewhere / "scheduler" / "scheduler_config.json", steps_offset=0)
    assert content(elsewhere) != before


def test_changed_weights_change_the_content_and_a_recipe_refuses_them(folder):
    resolved = resolve_model(option("local", path=str(folder)), Path.cwd())
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    spoiled = bytearray(weights.read_bytes())
    spoiled[-1] ^= 1
    weights.write_bytes(spoiled)
    assert resolve_model(option("local", path=str(folder)), Path.cwd())["content"] != resolved["content"]
    with pytest.raises(UsageError, match="not those that the recipe was made with"):
        resolve_model(resolved, Path.cwd())


def test_fp16_overflow_of_the_vae_is_what_the_xl_pipeline_looks_at():
    data = option("sdxl", weights="random", limits={"fp16_vae_overflows": None})
    assert resolve_model(data, Path.cwd())["limits"] == {"fp16_vae_overflows": True}
    data = option("sd15", weights="random", limits={"fp16_vae_overflows": None})
    assert resolve_model(data, Path.cwd())["limits"] == {"fp16_vae_overflows": False}


def to_pickle(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def to_variant(folder):
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))


def to_lfs_pointer(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def index(**changes):
    return lambda folder: edit(folder / "model_index.json", **changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (to_pickle, r"unet has its weights only as a pickle.*use_safetensors=False.*safe_serialization=True"),
        (to_variant, r"model\.variant=fp16"),
        (to_lfs_pointer, r"git lfs pull"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), r"unet has no safetensors file"),
        (lambda f: shutil.rmtree(f / "vae"), r"vae has no safetensors file"),
        (lambda f: (f / "model_index.json").unlink(), r"has no model_index\.json"),
        (lambda f: (f / "model_index.json").write_text("{"), r"is not JSON"),
        (lambda f: (f / "unet" / "config.json").unlink(), r"unet/config\.json is missing"),
        (index(_class_name=["my_pipeline", "Mine"]), r"custom pipeline"),
        (index(custom_pipeline="mine"), r"custom pipeline"),
        (index(unet=["my_unet", "MyUNet"]), r"unet is my_unet\.MyUNet, which is custom code"),
        (index(_class_name="AudioLDMPipeline"), r"AudioLDMPipeline.*known: StableDiffusionPipeline"),
        (index(unet=[None, None]), r"has no unet or transformer"),
    ],
)
def test_spoiled_folders_are_refused_in_one_paragraph(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UsageError, match=message) as raised:
        resolve_model(option("local", path=str(folder)), Path.cwd())
    assert "\n" not in str(raised.value)


def test_a_variant_is_used_where_it_exists(folder):
    to_variant(folder)
    assert resolve_model(option("local", path=str(folder), variant="fp16"), Path.cwd())["parameters"] == 1234251


def test_random_weights_need_no_weight_files(folder):
    to_pickle(folder)
    model = as_model(resolve_model(option("local", path=str(folder), weights="random"), Path.cwd()))
    assert (model.parameters, model.dtype) == (None, "float32")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (option("local"), r"add model\.path=DIR"),
        (option("local", path="nowhere"), r"there is no folder .*/nowhere"),
        (option("local", path="file.safetensors"), r"from_single_file"),
        (option("local", path=5), r"model\.path=5: this must be text"),
        (option("tiny", path="somewhere"), r"use model=local model\.path=somewhere"),
        (option("tiny", architecture="sd16"), r"known: sd15, sdxl, tiny"),
        (option("sd15", id=None), r"no safetensors file.*model\.weights=random"),
        (option("sd15", architecture=None, weights="random"), r"model\.architecture=NAME"),
        (option("sd15", architecture=None, height=None), r"model\.height cannot be read"),
        ({"name": "mine"}, r"model=mine lacks model\.id"),
        (option("sd15", limits=None), r"lacks model\.limits\.fp16_vae_overflows"),
    ],
)
def test_mistakes_in_the_option_are_explained(data, message, tmp_path):
    (tmp_path / "file.safetensors").touch()
    with pytest.raises(UsageError, match=message):
        resolve_model(data, tmp_path)


def test_packaged_folders_hold_no_machine_paths():
    for architecture in ("tiny", "sd15", "sdxl"):
        for path in packaged(architecture).rglob("*.json"):
            assert "_name_or_path" not in path.read_text(), path


def test_resolving_imports_no_torch():
    code = "import diffopt.model_files, diffopt.hardware, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGED.parent.parent).returncode == 0
