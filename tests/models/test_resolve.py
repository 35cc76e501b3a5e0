"""models.resolve and models.weights: facts from files, content hashes, refusals. No torch needed."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from support.places import REPO
from support.slow import first_ones

from diffopt.config import Composer
from diffopt.errors import UsageError
from diffopt.models.facts import read_model_facts
from diffopt.models.index import read_model_index
from diffopt.models.resolve import PACKAGED, model_folder, packaged_architecture, with_model_facts
from diffopt.schema.model import Activations, Call, Limits, Model, Parameters, Pipelines

CONF = REPO / "conf" / "model"
TINY = PACKAGED / "tiny"
PARAMETERS = Parameters(denoiser=2966120, text_encoders=406144, vae=453067)
SECTIONS = {
    "parameters": Parameters,
    "limits": Limits,
    "pipelines": Pipelines,
    "call": Call,
    "activations": Activations,
}


def option(name, **values):
    return {**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **values}


@cache
def composer():
    return Composer()


def composed(name):
    """The option with what it extends."""
    return composer().compose([f"model={name}"]).data["model"]


def as_model(data):
    return Model.from_plain(data)


@pytest.fixture
def folder(tmp_path):
    """A copy of the built-in model that a test may spoil."""
    return Path(shutil.copytree(TINY, tmp_path / "mine"))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_option_for_folders_lists_every_field_with_a_comment():
    data, lines = option("local"), (CONF / "local.yaml").read_text().splitlines()
    for values, cls in ((data, Model), *((data[name], cls) for name, cls in SECTIONS.items())):
        assert values.keys() == cls.model_fields.keys()
    for name in ("local", "hub"):
        lines = (CONF / f"{name}.yaml").read_text().splitlines()
        assert [line.split(":")[0] for line in lines[1:4]] == ["# What", "# Helps", "# Hurts"]
        bare = re.compile(r"limits:|defaults:|  vae: null")
        assert all(" # " in line for line in lines[4:] if not bare.match(line))
    own = yaml.safe_load((CONF / "hub.yaml").read_text())
    assert own.pop("defaults") == ["local", "_self_"]
    assert own.keys() <= data.keys()


STRUCTURE = ("denoiser", "denoiser_class", "vae", "text_encoders", "head_sizes", "vae_head_size", "size_multiple") + (
    "repeated_blocks",
    "frame_step",
    "upscale_factor",
    "guidance_argument",
)
SHIPPED = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem not in ("local", "hub"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_options_agree_with_their_files(name):
    """Where the YAML states what the configs state too, it is the same, for every family."""
    given = with_model_facts({**composed(name), "cascade": [], "weights": "random"}, Path.cwd())
    index = read_model_index(packaged_architecture(given["architecture"]))
    if given["embeddings"] is not None:
        index = index.without_text()
    told = read_model_facts(index, {}, {**given, "pipelines": {}, "task": None, "denoiser": None})
    for key in STRUCTURE:
        if told[key] is not None:
            assert told[key] == given[key], key
    given_classes = {task: cls for task, cls in given["pipelines"].items() if cls is not None}
    assert given_classes.items() <= told["pipelines"].items()


def test_hub_models_have_no_content_and_random_ones_have_their_configs():
    assert with_model_facts(option("sd15"), Path.cwd())["content"] is None
    assert model_folder(as_model(with_model_facts(option("sd15"), Path.cwd()))) is None
    random = as_model(with_model_facts(option("sd15", weights="random"), Path.cwd()))
    assert len(random.content) == 64
    assert random.pinned
    assert model_folder(random) == PACKAGED / "sd15"


def test_a_local_folder_is_read(folder):
    resolved = with_model_facts(option("local", path="mine"), folder.parent)
    model = as_model(resolved)
    assert model.path == str(folder)
    assert model_folder(model) == folder
    assert (model.pipelines.txt2img, model.denoiser_class) == ("StableDiffusionPipeline", "UNet2DConditionModel")
    assert (model.height, model.width, model.size_multiple) == (64, 64, 8)
    assert (model.steps, model.guidance, model.dtype, model.parameters) == (50, 7.5, "float16", PARAMETERS)
    assert with_model_facts(resolved, Path("/nowhere")) == resolved


def test_given_values_win_over_files(folder):
    model = as_model(with_model_facts(option("local", path=str(folder), height=128, dtype="bfloat16"), Path.cwd()))
    assert (model.height, model.width, model.dtype) == (128, 64, "bfloat16")


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert with_model_facts(option("local", path="~/mine"), Path("/nowhere"))["path"] == str(folder)


def test_content_is_of_the_files_and_not_of_the_place(folder, tmp_path):
    def content(path, **values):
        return with_model_facts(option("local", path=str(path), **values), tmp_path)["content"]

    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    before = content(folder)
    assert content(elsewhere) == before
    assert content(folder, weights="random") != before
    (elsewhere / "README.md").write_text("not part of the model")
    assert content(elsewhere) == before
    edit(elsewhere / "scheduler" / "scheduler_config.json", steps_offset=0)
    assert content(elsewhere) != before


def test_changed_weights_change_the_content_and_a_recipe_refuses_them(folder):
    resolved = with_model_facts(option("local", path=str(folder)), Path.cwd())
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    spoiled = bytearray(weights.read_bytes())
    spoiled[-1] ^= 1
    weights.write_bytes(spoiled)
    assert with_model_facts(option("local", path=str(folder)), Path.cwd())["content"] != resolved["content"]
    with pytest.raises(UsageError, match="not those that the recipe was made with"):
        with_model_facts(resolved, Path.cwd())


def test_fp16_overflow_of_the_vae_is_what_the_xl_pipeline_looks_at():
    for name, overflows in (("sdxl", True), ("sd15", False), ("pixart_sigma", True)):  # the last has SDXL's VAE
        data = option(name, weights="random", limits={"fp16_vae_overflows": None})
        assert with_model_facts(data, Path.cwd())["limits"]["fp16_vae_overflows"] is overflows


def to_pickle(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def to_variant(folder):
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))


def to_shards(folder):
    """The UNet's weights as one shard and the index that lists it."""
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shard = whole.with_name("diffusion_pytorch_model-00001-of-00001.safetensors")
    whole.rename(shard)
    listing = whole.with_name("diffusion_pytorch_model.safetensors.index.json")
    listing.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": shard.name}}))
    return shard, listing


def cut_short(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def renamed(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "foo.safetensors")


def replaced(name, put):
    """Put something else in the place of one file."""

    def spoil(folder):
        (folder / name).unlink()
        put(folder / name)

    return spoil


def link_to_nothing(path):
    path.symlink_to("nothing")


def header(content, data=b""):
    """The UNet's weights with another header."""

    def spoil(folder):
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    return spoil


def tensor(**changes):
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def without(key):
    """Remove a component from model_index.json."""

    def spoil(folder):
        path = folder / "model_index.json"
        path.write_text(
            json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key})
        )

    return spoil


def config(name, **changes):
    return lambda folder: edit(folder / name, **changes)


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
        (
            index(_class_name="AudioLDMPipeline"),
            r"what the pipeline class AudioLDMPipeline is for; .*model\.pipelines\.txt2img=AudioLDMPipeline",
        ),
        (index(unet=[None, None]), r"lacks unet, without which StableDiffusionPipeline"),
        (without("vae"), r"lacks vae"),
        (without("text_encoder"), r"lacks text_encoder"),
        (without("tokenizer"), r"lacks tokenizer"),
        (without("scheduler"), r"lacks scheduler"),
        (index(unet=["diffusers", "UNet2DConditionModel", "more"]), r"unet must be \[library, class\]"),
        (index(unet=["diffusers", 5]), r"unet must be \[library, class\]"),
        (index(unet=["diffusers", "a.b\n"]), r"unet is diffusers\.'a\.b\\n'"),
        (index(safety_checker=5), r"safety_checker must be \[library, class\]"),
        (index(_class_name="\ud800"), r"does not say the pipeline's class"),
        (index(**{"../../x": ["diffusers", "Model"]}), r"'\.\./\.\./x' cannot be the name of a component"),
        (index(**{"/etc": ["diffusers", "Model"]}), r"'/etc' cannot be the name"),
        (lambda f: (f / "model_index.json").write_text("[" * 100_000), r"is not JSON"),
        (lambda f: (f / "model_index.json").write_bytes(b'{"a": "\xff"}'), r"is not JSON"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), r"scheduler_config\.json is missing"),
        (
            lambda f: (f / "tokenizer" / "tokenizer.json").unlink(),
            r"tokenizer has no tokenizer: .*vocab\.json and merges",
        ),
        (lambda f: (f / "tokenizer" / "tokenizer.json").rename(f / "tokenizer" / "vocab.json"), r"has no tokenizer"),
        (cut_short, r"is incomplete: its tensors take \d+ bytes, but \d+ are there"),
        (renamed, r"has no diffusion_pytorch_model\.safetensors, the name that is loaded, but foo\.safetensors"),
        (replaced("unet/config.json", Path.mkdir), r"unet/config\.json: this is a (folder|pipe), not a file"),
        (replaced("unet/config.json", os.mkfifo), r"unet/config\.json: this is a (folder|pipe), not a file"),
        (replaced("unet/config.json", link_to_nothing), r"unet/config\.json is missing"),
        (
            replaced("vae/diffusion_pytorch_model.safetensors", Path.mkdir),
            r"vae/.*\.safetensors: this is a folder",
        ),
        (replaced("vae/diffusion_pytorch_model.safetensors", link_to_nothing), r"vae/.*No such file.*not complete"),
        (lambda f: link_to_nothing(f / "tokenizer" / "special_tokens_map.json"), r"a link to one that is gone"),
        (config("vae/config.json", block_out_channels=None), r"vae/config\.json: block_out_channels must be a list"),
        (config("vae/config.json", block_out_channels=5), r"block_out_channels must be a list"),
        (config("vae/config.json", block_out_channels=[16] * 5000), r"block_out_channels must be a list"),
        (config("unet/config.json", sample_size="8"), r"unet/config\.json: sample_size must be one number"),
        (config("unet/config.json", sample_size=[8, 8, 8]), r"sample_size must be one number"),
        (config("unet/config.json", sample_size=True), r"sample_size must be one number"),
        (config("unet/config.json", block_out_channels=None), r"unet/config\.json: .*do not fit together"),
        (header([]), r"is not a safetensors file"),
        (header(b"[" * 100_000), r"is not a safetensors file"),
        (header({}), r"holds no tensors"),
        (header({"__metadata__": {}}), r"holds no tensors"),
        (header({"t": 5}), r"describes the tensor 't' wrongly"),
        (header({"t": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), r"describes the tensor 't' wrongly"),
        (header(tensor(shape=[-2]), bytes(8)), r"describes the tensor 't' wrongly"),
        (header(tensor(shape="2"), bytes(8)), r"describes the tensor 't' wrongly"),
        (header(tensor(shape=[[2]]), bytes(8)), r"describes the tensor 't' wrongly"),
        (header(tensor(shape=[2, 2]), bytes(8)), r"describes the tensor 't' wrongly"),
        (header(tensor(dtype="F" + "9" * 5000), bytes(8)), r"describes the tensor 't' wrongly"),
        (header(tensor(data_offsets=[8]), bytes(8)), r"describes the tensor 't' wrongly"),
    ],
)
def test_spoiled_folders_are_refused_in_one_paragraph(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UsageError, match=message) as raised:
        with_model_facts(option("local", path=str(folder)), Path.cwd())
    assert "\n" not in str(raised.value)


def test_a_variant_is_used_where_it_exists(folder):
    with pytest.raises(UsageError, match=r"has no files of the variant 'fp16'"):
        with_model_facts(option("local", path=str(folder), variant="fp16"), Path.cwd())
    to_variant(folder)
    assert (
        with_model_facts(option("local", path=str(folder), variant="fp16"), Path.cwd())["parameters"]
        == PARAMETERS.model_dump()
    )


def test_shards_are_the_files_that_their_index_lists(folder):
    whole = with_model_facts(option("local", path=str(folder)), Path.cwd())
    shard, listing = to_shards(folder)
    sharded = with_model_facts(option("local", path=str(folder)), Path.cwd())
    assert (sharded["parameters"], sharded["dtype"]) == (whole["parameters"], whole["dtype"])
    shard.unlink()
    with pytest.raises(UsageError, match=r"00001-of-00001\.safetensors cannot be read: No such file"):
        with_model_facts(option("local", path=str(folder)), Path.cwd())
    for names in (None, {}, {"a": 5}, {"a": "../vae/diffusion_pytorch_model.safetensors"}):
        listing.write_text(json.dumps({"weight_map": names}))
        with pytest.raises(UsageError, match="weight_map"):
            with_model_facts(option("local", path=str(folder)), Path.cwd())


def test_weights_that_nothing_loads_do_not_count(folder):
    before = with_model_facts(option("local", path=str(folder)), Path.cwd())
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    assert with_model_facts(option("local", path=str(folder)), Path.cwd()) == before


DEEP = json.loads("[" * 200 + "]" * 200)
ODD = (None, 5, -1, 10**30, True, "8", "\ud800\n", [], [5, None], ["a", "b"], {}, {"a": [{}]}, DEEP)


def mutations(path):
    """Every JSON that differs from the one in ``path`` by one key, and a few that are no object."""
    data = json.loads(path.read_text())
    yield from ODD
    for key in data:
        yield {name: value for name, value in data.items() if name != key}
        yield from ({**data, key: value} for value in ODD)


@pytest.mark.parametrize("weights", ["pretrained", pytest.param("random", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", first_ones(sorted(str(path.relative_to(TINY)) for path in TINY.rglob("*.json")), 2))
def test_whatever_a_json_says_only_usage_errors_come_out(name, weights, folder):
    problems = []
    if weights == "random":
        (folder / "tokenizer" / "tokenizer.json").unlink()
        if name == "tokenizer/tokenizer.json":
            return
    asked = option("local", path=str(folder), weights=weights)
    with_model_facts(asked, Path.cwd())
    for data in mutations(TINY / name):
        (folder / name).write_text(json.dumps(data))
        try:
            # pydantic's own error becomes a UsageError, which names the key, when the cell is made
            with suppress(ValidationError):
                as_model(with_model_facts(asked, Path.cwd()))
        except UsageError as error:
            problems.append(str(error))
    assert problems
    for problem in problems:
        assert "\n" not in problem
        assert problem.encode()


def test_random_weights_need_no_weight_files(folder):
    to_pickle(folder)
    model = as_model(with_model_facts(option("local", path=str(folder), weights="random"), Path.cwd()))
    assert (model.parameters.total, model.dtype) == (None, "float32")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (option("local"), r"add model\.path=DIR"),
        (option("local", path="nowhere"), r"there is no folder .*/nowhere"),
        (option("local", path="file.safetensors"), r"from_single_file"),
        (option("local", path=5), r"model\.path=5: this must be text"),
        (option("local", path="a\0b"), r"model\.path=.*(cannot be a path|there is no folder)"),
        (option("local", path="x" * 5000), r"model\.path=.*cannot be a path"),
        (option("local", path="~nobody-of-this-name/x"), r"model\.path=.*cannot be a path"),
        (option("local", path="loop"), r"there is no folder .*/loop"),
        (option("tiny", path="somewhere"), r"use model=local model\.path=somewhere"),
        (option("tiny", architecture="sd16"), "there is no such architecture.*Did you mean"),
        (option("sd15", id=None), r"no safetensors file.*model\.weights=random"),
        (option("sd15", architecture=None, weights="random"), r"model\.architecture=NAME"),
        (option("tiny", parameters=None), r"lacks model\.parameters\.denoiser"),
        (option("tiny", pipelines=5), r"model\.pipelines=5: this must be a mapping"),
        (
            option("local", path="good", denoiser="vea"),
            r"has no vea; say .* model\.denoiser=NAME: text_encoder, unet, vae",
        ),
        ({"name": "mine"}, r"model=mine lacks model\.id"),
        (option("sd15", limits=None), r"lacks model\.limits\.fp16_vae_overflows"),
    ],
)
def test_mistakes_in_the_option_are_explained(data, message, tmp_path):
    shutil.copytree(TINY, tmp_path / "good")
    (tmp_path / "file.safetensors").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=message):
        with_model_facts(data, tmp_path)


def test_packaged_folders_hold_no_machine_paths():
    for architecture in ("tiny", "sd15", "sdxl"):
        for path in packaged_architecture(architecture).rglob("*.json"):
            assert "_name_or_path" not in path.read_text(), path


def test_resolving_imports_no_torch():
    code = "import diffopt.models.resolve, diffopt.machine.hardware, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGED.parents[2]).returncode == 0
