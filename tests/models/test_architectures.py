"""The architectures of diffopt/models/architectures: sizes as published, and every tiny one runs in its tasks."""

import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from diffopt.models.random.weights import meta_modules, random_pipeline
from diffopt.models.resolve import PACKAGED

CLIP_L, CLIP_L_PROJECTION, CLIP_G = 123_060_480, 123_650_304, 694_659_840
T5_XXL, QWEN3_4B = 4_762_310_656, 4_022_468_096
SD_VAE, FLUX_VAE = 83_653_863, 83_819_683

# Public figures, exact. Bytes are total_size of the published safetensors index, two for each parameter in bfloat16;
# headers are those of the published safetensors, summed.
PUBLISHED = {
    "sd15": {"unet": 859_520_964},  # docstring of num_parameters in diffusers
    "sd_controlnet_canny": {"controlnet": 361_279_120},  # text of a public repository
    "sdxl": {"unet": 2_567_463_684},  # several public repositories
    "flux_dev": {
        "transformer": 11_901_408_320,  # 23,802,816,640 bytes
        "text_encoder_2": T5_XXL,  # 9,524,621,312 bytes
        "vae": FLUX_VAE,  # headers
    },
    "flux_schnell": {"transformer": 11_891_178_560},  # 23,782,357,120 bytes
    "sd35_large": {
        "transformer": 8_056_627_520,  # 16,292,561,536 bytes, less the 2 * 192 * 192 * 2432 of the table of positions
        "text_encoder": CLIP_L_PROJECTION,  # headers: the three encoders together have 5,580,620,800
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL,
    },
    "sana_1600m": {"vae": 312_250_275},  # headers
    "pixart_sigma": {"transformer": 610_856_096},  # a public test of profiling it
    "wan21_t2v_1_3b": {
        "transformer": 1_418_996_800,  # texts of two public repositories
        "text_encoder": 5_680_910_336,  # 11,361,820,672 bytes
        "vae": 126_892_531,  # text of a public repository
    },
    "ltx_video": {"transformer": 1_923_385_472},  # log of finetrainers
    "cogvideox_5b": {"transformer": 5_570_283_072},  # log of finetrainers
    "qwen_image": {
        "transformer": 20_430_401_088,  # 40,860,802,176 bytes
        "text_encoder": 8_292_166_656,  # headers
        "vae": 126_892_531,  # headers
    },
    "z_image": {"transformer": 6_154_908_736},  # texts of two public repositories
    "flux2_klein_4b": {
        "transformer": 3_875_544_576,  # text of a public repository
        "vae": 84_046_115,  # the same; 256 more with the statistics, which are buffers
    },
}

# Only known rounded, from the model's card or from memory: the figure and its unit. IF's widths are not known: those of
# I-M are inferred from its larger siblings, and the layers of II-M were chosen to meet the card.
ROUNDED = {
    "sd15": {"text_encoder": (123_000_000, 1_000_000), "vae": (83_700_000, 100_000)},
    "deepfloyd_if_i_m": {"unet": (400_000_000, 100_000_000)},
    "deepfloyd_if_ii_m": {"unet": (450_000_000, 10_000_000)},
    "sd_x4_upscaler": {"unet": (473_000_000, 1_000_000), "text_encoder": (340_000_000, 1_000_000)},
    "sd35_medium": {"transformer": (2_240_000_000, 10_000_000)},
    "sana_1600m": {"transformer": (1_600_000_000, 100_000_000), "text_encoder": (2_614_000_000, 1_000_000)},
    "cogvideox_2b": {"transformer": (1_690_000_000, 10_000_000)},
    "hunyuan_video": {"transformer": (13_000_000_000, 1_000_000_000)},
}

# Counted here, since no exact figure was found for this very model: a config that changes shall be noticed.
COUNTED = {
    "sd15": {"text_encoder": CLIP_L, "vae": SD_VAE},
    "sd15_inpaint": {"unet": 859_535_364, "text_encoder": CLIP_L, "vae": SD_VAE},  # sd15 and 5 * 320 * 9 more
    "sd_controlnet_canny": {"unet": 859_520_964, "text_encoder": CLIP_L, "vae": SD_VAE},
    "sdxl": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "vae": SD_VAE},
    "flux_dev": {"text_encoder": CLIP_L},
    "flux_schnell": {"text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "vae": FLUX_VAE},
    "flux_kontext": {"transformer": 11_901_408_320, "text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "vae": FLUX_VAE},
    "deepfloyd_if_i_m": {"unet": 371_605_830, "text_encoder": T5_XXL},
    "deepfloyd_if_ii_m": {"unet": 448_535_814, "text_encoder": T5_XXL},
    "sd_x4_upscaler": {"unet": 473_398_020, "text_encoder": 340_387_840, "vae": 55_325_927},
    "sd35_medium": {
        "transformer": 2_243_171_520,
        "text_encoder": CLIP_L_PROJECTION,
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL,
        "vae": FLUX_VAE,
    },
    "sd35_large": {"vae": FLUX_VAE},
    "sana_1600m": {"transformer": 1_604_462_752, "text_encoder": 2_614_341_888},
    "pixart_sigma": {"text_encoder": T5_XXL, "vae": SD_VAE},
    "ltx_video": {"text_encoder": T5_XXL, "vae": 419_193_649},
    "cogvideox_2b": {"transformer": 1_693_783_872, "text_encoder": T5_XXL, "vae": 215_583_907},
    "cogvideox_5b": {"text_encoder": T5_XXL, "vae": 215_583_907},
    "z_image": {"text_encoder": QWEN3_4B, "vae": FLUX_VAE},
    "flux2_klein_4b": {"text_encoder": QWEN3_4B},
    "hunyuan_video": {
        "transformer": 12_821_012_544,
        "text_encoder": 7_505_186_816,  # Llama 3 8B without its head
        "text_encoder_2": CLIP_L,
        "vae": 246_478_803,
    },
}

FULL_SIZE = sorted(index.parent.name for index in PACKAGED.glob("*/model_index.json") if index.parent.name != "tiny")


@pytest.fixture(scope="module", params=FULL_SIZE)
def empty(request):
    """Name and modules without values of a full-size architecture."""
    return request.param, meta_modules(PACKAGED / request.param)


def test_full_size_architectures_have_the_published_number_of_parameters(empty):
    name, modules = empty
    found = {part: module.num_parameters() for part, module in modules.items()}
    published, counted = PUBLISHED.get(name, {}), COUNTED.get(name, {})
    assert not published.keys() & counted.keys()
    assert found == published | counted
    for part, (figure, unit) in ROUNDED.get(name, {}).items():
        assert round(found[part] / unit) * unit == figure


def test_full_size_pipelines_assemble(empty):
    name, modules = empty
    index = json.loads((PACKAGED / name / "model_index.json").read_text())
    parts = {part: entry for part, entry in index.items() if isinstance(entry, list)}
    others = {part: None for part in parts.keys() - modules.keys()}
    for part in [part for part in others if part.endswith("scheduler")]:
        others[part] = getattr(diffusers, parts[part][1]).from_pretrained(PACKAGED / name / part)
    cls = getattr(diffusers, index["_class_name"])
    accepted = inspect.signature(cls.__init__).parameters
    settings = {key: value for key, value in index.items() if key in accepted and key not in parts}
    pipe = cls(**modules, **others, **settings)
    assert all(getattr(pipe, part) is module for part, module in modules.items())


@pytest.mark.parametrize("name", FULL_SIZE)
def test_tiny_architectures_have_the_parts_of_the_full_size_ones(name):
    """What runs in small is what is measured at full size."""
    full, tiny = (json.loads((PACKAGED / folder / "model_index.json").read_text()) for folder in (name, f"{name}/tiny"))
    assert full == tiny


def painting(variant, side):
    """A picture (side, side) of smooth colours."""
    y, x = np.mgrid[0:side, 0:side] / side
    colours = np.stack([np.sin(6 * x + 2 * variant), np.cos(5 * y * (variant + 1)), x * y], -1) / 2 + 0.5
    return Image.fromarray((255 * colours).astype("uint8"))


def cross(variant, side):
    """A control map (side, side): white lines on black."""
    lines = np.zeros((side, side, 3), "uint8")
    lines[side // (3 - variant)] = lines[:, side // 2] = 255
    return Image.fromarray(lines)


def mask(side):
    """White in the middle, where something new is drawn."""
    area = np.zeros((side, side), "uint8")
    area[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 255
    return Image.fromarray(area)


def sized(side, **keys):
    return {"height": side, "width": side, **keys}


SHORT = {"max_sequence_length": 32}
PLAIN = {**SHORT, "use_resolution_binning": False, "clean_caption": False}
# Architecture, pipeline class (None: its own), arguments, and the conditioning picture with its side.
RUNS = [
    ("sd15", None, sized(64), None),
    ("sd15", "StableDiffusionImg2ImgPipeline", {"strength": 0.8}, (painting, 64)),
    ("sd15", "StableDiffusionInpaintPipeline", sized(64, strength=1.0, mask_image=mask(64)), (painting, 64)),
    ("sd15_inpaint", None, sized(64, mask_image=mask(64)), (painting, 64)),
    ("sd_controlnet_canny", None, sized(64), (cross, 64)),
    ("sdxl", None, sized(64), None),
    ("sdxl", "StableDiffusionXLImg2ImgPipeline", {"strength": 0.8}, (painting, 64)),
    ("sdxl", "StableDiffusionXLInpaintPipeline", sized(64, strength=0.9, mask_image=mask(64)), (painting, 64)),
    ("flux_dev", None, sized(64, **SHORT), None),
    ("flux_dev", "FluxImg2ImgPipeline", sized(64, strength=0.5, **SHORT), (painting, 64)),
    ("flux_schnell", None, sized(64, guidance_scale=0.0, **SHORT), None),
    ("flux_kontext", None, sized(64, max_area=64 * 64, _auto_resize=False, **SHORT), (painting, 64)),
    ("deepfloyd_if_i_m", None, sized(16, clean_caption=False), None),
    ("deepfloyd_if_ii_m", None, sized(64, clean_caption=False), (painting, 16)),
    ("sd_x4_upscaler", None, {"noise_level": 20}, (painting, 32)),
    ("sd35_medium", None, sized(64, **SHORT), None),
    ("sd35_large", None, sized(64, **SHORT), None),
    ("sana_1600m", None, sized(64, **PLAIN), None),
    ("pixart_sigma", None, sized(64, **PLAIN), None),
    ("qwen_image", None, sized(64, negative_prompt=" ", true_cfg_scale=4.0, **SHORT), None),
    ("z_image", None, sized(64, **SHORT), None),
    ("flux2_klein_4b", None, sized(64, text_encoder_out_layers=(1, 2, 3), **SHORT), None),
    ("wan21_t2v_1_3b", None, sized(32, num_frames=5, **SHORT), None),
    ("ltx_video", None, sized(32, num_frames=9, **SHORT), None),
    ("ltx_video", "LTXImageToVideoPipeline", sized(32, num_frames=9, **SHORT), (painting, 32)),
    ("cogvideox_2b", None, sized(64, num_frames=9, **SHORT), None),
    ("cogvideox_5b", None, sized(64, num_frames=9, **SHORT), None),
    ("hunyuan_video", None, sized(32, num_frames=5, **SHORT), None),
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name, class_name):
    folder = PACKAGED / name / "tiny"
    index = json.loads((folder / "model_index.json").read_text())
    cls = getattr(diffusers, class_name or index["_class_name"])
    pipe = random_pipeline(folder, cls, device="cpu", dtype={"default": torch.float32})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt, keys, picture):
    """Pictures or frames (count, height, width, 3) of two steps from one seed."""
    images = {} if picture is None else {"image": picture}
    generator = torch.Generator().manual_seed(0)
    out = pipe(prompt=prompt, generator=generator, num_inference_steps=2, output_type="np", **keys, **images)
    return out.images if hasattr(out, "images") else out.frames[0]


def test_every_tiny_architecture_is_run():
    assert {name for name, *_ in RUNS} == set(FULL_SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "class_name", "keys", "picture"), RUNS, ids=[f"{n}-{c or 'own'}" for n, c, *_ in RUNS]
)
def test_tiny_architectures_draw_what_they_are_told(name, class_name, keys, picture):
    first, second = (picture[0](variant, picture[1]) if picture else None for variant in (0, 1))
    pipe = build(name, class_name)
    drawn = draw(pipe, "a red circle", keys, first)
    assert np.isfinite(drawn).all()
    assert drawn.shape[-1] == 3
    assert drawn.std() > 0.1
    assert np.array_equal(drawn, draw(build(name, class_name), "a red circle", keys, first))
    assert np.abs(drawn - draw(pipe, "a photo of a horse on mars", keys, first)).mean() > 0.005
    if picture:
        assert np.abs(drawn - draw(pipe, "a red circle", keys, second)).mean() > 0.005
