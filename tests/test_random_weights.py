"""diffopt.random_weights: real architectures at full size from configs, seeded, finite, with an effect everywhere."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffopt.model_files import PACKAGED
from diffopt.random_weights import fill, random_pipeline

FLOAT32 = {"default": torch.float32}
TINY = PACKAGED / "tiny"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bare(tmp_path):
    """The configs of the built-in model, and nothing else."""
    folder = tmp_path / "bare"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer.json"))
    return folder


def weights(pipe):
    return {
        f"{name}.{key}": value
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
        for key, value in part.state_dict().items()
    }


def picture(pipe, prompt):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=4, guidance_scale=4.0, generator=generator, output_type="np").images[0]


def test_same_seed_same_weights_in_every_dtype(bare):
    first, again, other, half = (
        weights(random_pipeline(bare, StableDiffusionPipeline, device="cpu", dtype={"default": dtype}, seed=seed))
        for dtype, seed in [(torch.float32, 0), (torch.float32, 0), (torch.float32, 1), (torch.float16, 0)]
    )
    key = "unet.conv_in.weight"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[key], other[key])
    assert torch.equal(first[key].half(), half[key])


def test_dtypes_per_component_and_no_training(bare):
    dtype = {"default": torch.bfloat16, "vae": torch.float32}
    pipe = random_pipeline(bare, StableDiffusionPipeline, device="cpu", dtype=dtype)
    assert pipe.vae.dtype == torch.float32
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.bfloat16
    assert not pipe.unet.training
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    assert pipe.safety_checker is None


def test_every_matrix_has_an_effect_and_buffers_are_real(bare):
    pipe = random_pipeline(bare, StableDiffusionPipeline, device="cpu", dtype=FLOAT32)
    for name, value in weights(pipe).items():
        assert not value.is_meta, name
        assert value.ndim < 2 or value.std() > 0, name
    (positions,) = [b for n, b in pipe.text_encoder.named_buffers() if n.endswith("position_ids")]
    assert positions.tolist() == [list(range(77))]


def test_a_zero_initialised_layer_is_woken():
    layer = torch.nn.Conv2d(4, 4, 1)
    torch.nn.init.zeros_(layer.weight)
    fill(layer, device="cpu", dtype=torch.float32, seed=0)
    assert layer.weight.std().item() == pytest.approx(0.5, rel=0.5)  # 1 / sqrt(fan-in 4)
    assert not layer.bias.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pictures_vary_and_depend_on_the_prompt(bare, dtype):
    pipe = random_pipeline(bare, StableDiffusionPipeline, device="cpu", dtype={"default": dtype})
    circle, horse = picture(pipe, "a red circle"), picture(pipe, "a photo of a horse on mars")
    assert np.isfinite(circle).all()
    assert circle.std() > 0.1
    assert np.abs(circle - horse).mean() > 0.02


def test_tiny_offers_something_to_every_optimization():
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(TINY / "unet", local_files_only=True)
    attention = [name for name, module in unet.named_modules() if type(module).__name__ == "Attention"]
    assert {name.split(".")[0] for name in attention} == {"down_blocks", "mid_block", "up_blocks"}
    linears = [m for m in unet.modules() if isinstance(m, torch.nn.Linear)]
    sizes = [size for m in linears for size in (m.in_features, m.out_features)]
    assert all(size % 16 == 0 for size in sizes)
    assert sum(min(m.in_features, m.out_features) >= 64 for m in linears) > len(linears) / 2
    heads = [m.inner_dim // m.heads for m in unet.modules() if type(m).__name__ == "Attention"]
    assert min(heads) >= 16


@pytest.mark.parametrize("name", ["tiny", "sd15", "sdxl"])
def test_full_size_architectures_have_the_published_number_of_parameters(name):
    import yaml

    from diffopt.random_weights import _empty_module

    folder = PACKAGED / name
    index = json.loads((folder / "model_index.json").read_text())
    total = 0
    for component, entry in index.items():
        if component in ("unet", "vae", "text_encoder", "text_encoder_2"):
            library = __import__(entry[0])
            total += sum(p.numel() for p in _empty_module(getattr(library, entry[1]), folder / component).parameters())
    option = yaml.safe_load((PACKAGED.parent.parent / "conf" / "model" / f"{name}.yaml").read_text())
    assert total == option["parameters"]
