"""models.random.weights: real architectures at full size from configs, seeded, finite, with an effect everywhere."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import StableDiffusionPipeline
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

from diffopt.errors import UsageError
from diffopt.models.random.weights import fill_with_random_weights, meta_modules, random_pipeline
from diffopt.models.resolve import PACKAGED

FLOAT32 = {"default": torch.float32}
TINY = PACKAGED / "tiny"
ARCHITECTURES = sorted(index.parent.parent.name for index in PACKAGED.glob("*/tiny/model_index.json"))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
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
    fill_with_random_weights(layer, device="cpu", dtype=torch.float32, seed=0)
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


def random(name, cls=None, dtype=torch.float32, **keys):
    """The tiny random pipeline of an architecture, of its own class unless another is given."""
    folder = PACKAGED / name / "tiny"
    cls = cls or getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    return random_pipeline(folder, cls, device="cpu", dtype={"default": dtype}, **keys)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request):
    return request.param, random(request.param)


def modules(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def test_no_weight_of_any_architecture_is_without_effect(architecture):
    _, pipe = architecture
    for name, module in modules(pipe).items():
        for path, value in module.named_parameters():
            assert not value.is_meta
            assert torch.isfinite(value).all()
            if path.endswith(".gamma"):
                assert (value == 1).all()
            elif value.ndim > 1:
                assert value.std() > 0.01, f"{name}.{path}"


def test_buffers_of_all_architectures_are_those_of_a_model_that_is_really_built(architecture):
    name, pipe = architecture
    for part, module in modules(pipe).items():
        folder, cls = PACKAGED / name / "tiny" / part, type(module)
        if issubclass(cls, diffusers.ModelMixin):
            built = cls.from_config(cls.load_config(folder))
        else:
            built = cls(cls.config_class.from_pretrained(folder))
        expected, found = dict(built.named_buffers()), dict(module.named_buffers())
        assert expected.keys() == found.keys()
        for path, buffer in expected.items():
            assert found[path].dtype == buffer.dtype, path
            assert torch.equal(found[path], buffer), path


def test_tied_weights_stay_tied():
    encoder = random("flux_dev").text_encoder_2
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    language = random("flux2_klein_4b").text_encoder
    assert language.lm_head.weight is language.model.embed_tokens.weight


def test_stored_types_are_those_of_weights_from_a_file():
    """What diffusers and transformers keep in float32 stays so; buffers of a checkpoint are stored like weights."""
    wan = random("wan21_t2v_1_3b", dtype=torch.bfloat16)
    dtypes = {path: value.dtype for path, value in wan.transformer.named_parameters()}
    wide = {path for path, dtype in dtypes.items() if dtype == torch.float32}
    assert "blocks.0.scale_shift_table" in wide
    assert "condition_embedder.time_embedder.linear_1.weight" in wide
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert wan.text_encoder.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.bfloat16
    t5 = random("pixart_sigma", dtype=torch.float16).text_encoder.encoder.block[0].layer[1].DenseReluDense
    assert (t5.wo.weight.dtype, t5.wi_0.weight.dtype) == (torch.float32, torch.float16)
    sd3, klein = (random(name, dtype=torch.bfloat16) for name in ("sd35_medium", "flux2_klein_4b"))
    assert sd3.transformer.pos_embed.pos_embed.dtype == torch.bfloat16
    assert klein.vae.bn.running_var.dtype == torch.bfloat16
    assert klein.vae.bn.num_batches_tracked.dtype == torch.int64
    assert wan.transformer.rope.freqs_cos.dtype == torch.float32


def test_what_a_config_says_about_types_does_not_leak(tmp_path):
    folder = tmp_path / "qwen"
    shutil.copytree(PACKAGED / "qwen_image" / "tiny", folder)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float16"
    path.write_text(json.dumps(config))
    pipe = random_pipeline(folder, diffusers.QwenImagePipeline, device="cpu", dtype=FLOAT32)
    assert {value.dtype for value in pipe.text_encoder.parameters()} == {torch.float32}
    parts = [part for part in pipe.text_encoder.modules() if isinstance(part, transformers.PreTrainedModel)]
    assert {part.config.dtype for part in parts} == {None}  # a part that is made by its config would be made in it
    expected = dict(random("qwen_image").text_encoder.named_buffers())
    for name, buffer in pipe.text_encoder.named_buffers():
        assert torch.equal(buffer, expected[name]), name


def test_scales_and_tables_are_sensible():
    pixart = random("pixart_sigma")
    table = pixart.transformer.transformer_blocks[0].scale_shift_table
    assert table.std().item() == pytest.approx(table.shape[-1] ** -0.5, rel=0.2)
    gemma = random("sana_1600m").text_encoder
    assert not gemma.norm.weight.any()  # it multiplies by 1 + weight
    embedded = gemma.embed_tokens(torch.arange(100))
    assert embedded.std().item() == pytest.approx(1, rel=0.1)
    attention = pixart.text_encoder.encoder.block[0].layer[0].SelfAttention
    heads = (attention.q(torch.randn(64, attention.d_model)) @ attention.k(torch.randn(64, attention.d_model)).T).std()
    assert heads.item() < 3  # softmax would otherwise pick one token alone


def test_lines_of_a_control_map_matter_as_much_as_latents():
    """diffusers' own initialisation gives 0 here, and 0.0003 when only the zeros are replaced."""
    hint = ControlNetConditioningEmbedding(320, block_out_channels=(16, 32, 96, 256))
    fill_with_random_weights(hint, device="cpu", dtype=torch.float32, seed=0)
    lines = torch.zeros(1, 3, 128, 128)
    lines[..., ::24] = 1
    with torch.no_grad():
        assert 0.1 < hint(lines).std() < 10


def test_a_controlnet_reaches_every_level_of_the_unet():
    net = random("sd_controlnet_canny").controlnet
    control, latents = torch.zeros(1, 3, 64, 64), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 77, net.config.cross_attention_dim)
    other = control.clone()
    other[..., 30:33] = 1
    with torch.no_grad():
        first, second = (
            net(latents, 500, text, controlnet_cond=image, return_dict=False) for image in (control, other)
        )
    for a, b in zip([*first[0], first[1]], [*second[0], second[1]], strict=True):
        assert a.std() > 0.3
        assert (a - b).std() > 0.03 * a.std()


def test_components_can_be_left_out():
    pipe = random("deepfloyd_if_i_m", without=("text_encoder", "tokenizer"))
    assert pipe.text_encoder is pipe.tokenizer is pipe.watermarker is None
    pipe.set_progress_bar_config(disable=True)
    embeds = torch.randn(1, 2, pipe.unet.config.encoder_hid_dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    out = pipe(prompt_embeds=embeds, negative_prompt_embeds=embeds * 0, generator=generator, height=16, width=16,
               num_inference_steps=2, output_type="np")  # fmt: skip
    assert np.isfinite(out.images).all()


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("sd15", "StableDiffusionImg2ImgPipeline"),
        ("sd15", "StableDiffusionInpaintPipeline"),
        ("sdxl", "StableDiffusionXLInpaintPipeline"),
        ("sd_controlnet_canny", "StableDiffusionPipeline"),  # takes no ControlNet
        ("flux_dev", "FluxInpaintPipeline"),
        ("sd35_medium", "StableDiffusion3Img2ImgPipeline"),
        ("qwen_image", "QwenImageImg2ImgPipeline"),
        ("z_image", "ZImageImg2ImgPipeline"),
        ("wan21_t2v_1_3b", "WanVideoToVideoPipeline"),
        ("cogvideox_5b", "CogVideoXVideoToVideoPipeline"),
    ],
)
def test_other_classes_are_given_what_they_take(name, cls):
    pipe = random(name, getattr(diffusers, cls))
    assert type(pipe).__name__ == cls
    index = json.loads((PACKAGED / name / "tiny" / "model_index.json").read_text())
    there = {part for part, entry in index.items() if isinstance(entry, list) and entry[0] is not None}
    assert {part for part, value in pipe.components.items() if value is not None} == there - {"controlnet"}


def test_settings_of_the_pipeline_are_kept():
    assert random("sdxl").config.force_zeros_for_empty_prompt is True
    assert random("flux2_klein_4b").config.is_distilled is True
    assert random("sd15").config.requires_safety_checker is False


def test_a_class_that_needs_more_than_there_is():
    with pytest.raises(UsageError, match="lacks controlnet, which StableDiffusionControlNetPipeline is made of"):
        random("sd15", diffusers.StableDiffusionControlNetPipeline)


def test_modules_on_the_meta_device():
    pipe, folder = random("sd_controlnet_canny"), PACKAGED / "sd_controlnet_canny" / "tiny"
    found = meta_modules(folder)
    assert found.keys() == {"controlnet", "text_encoder", "unet", "vae"}
    assert meta_modules(folder, without=("text_encoder",)).keys() == {"controlnet", "unet", "vae"}
    for name, module in found.items():
        assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        real = {path: value.shape for path, value in getattr(pipe, name).state_dict().items()}
        assert {path: value.shape for path, value in module.state_dict().items()} == real
