"""What diffusers' pipeline classes are for: families of classes that draw with the same components.

One line per family, so that a folder or a hub repository is planned without importing diffusers. Tasks follow the
mappings of ``diffusers.pipelines.auto_pipeline``, numbers the defaults of the classes; a test compares
both with the diffusers that is installed. Left out is what a workload cannot call: classes without a prompt, a number
of steps or a guidance scale, and those that need more pictures than one task has.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from diffopt.schema.model import Task

Parts = tuple[str, ...]
NOTHING: Mapping[str, Any] = MappingProxyType({})
TEXT: Parts = ("text_encoder", "tokenizer", "scheduler")
TEXT2: Parts = ("text_encoder_2", "tokenizer_2")
UNET: Parts = ("unet", "vae", *TEXT)
XL: Parts = ("unet", "vae", *TEXT2, "scheduler")  # the refiner has no first text encoder
IF: Parts = ("unet", "scheduler")  # in pixels, and the text encoder may be left out
MOVQ: Parts = ("unet", "movq", "scheduler")
PRIOR: Parts = (*MOVQ, "prior_prior", "prior_text_encoder", "prior_tokenizer")
DIT: Parts = ("transformer", "vae", *TEXT)
DIT2: Parts = (*DIT, *TEXT2)
PROCESSED: Parts = ("transformer", "vae", "text_encoder", "processor", "scheduler")
SMALL, SQUARE, WIDE, HD = (512, 512), (1024, 1024), (480, 832), (720, 1280)
PLAIN = MappingProxyType({"clean_caption": False})  # so that no further package is needed
BINS = MappingProxyType({"use_resolution_binning": False})  # the size asked for, and not the nearest that was trained
FTFY: Parts = ("ftfy",)
BOTH = MappingProxyType({**PLAIN, **BINS})


class Family(NamedTuple):
    """Classes that share their components, and how diffusers calls them where nobody says otherwise."""

    stems: dict[Task, str]  # class name without "Pipeline", by task; the first is the customary use
    parts: Parts  # components without which it cannot draw
    steps: int
    guidance: float
    size: tuple[int, int] | None = None  # height and width in pixels, where the class says so itself
    latent: int | None = None  # side in latent pixels, where neither the class nor the denoiser's config says a size
    frames: int | None = None
    fps: int | None = None  # of the video that diffusers' example saves
    multiple: int = 8  # of height and width in pixels, as the class checks it, whatever the VAE's factor
    call: Mapping[str, bool] = NOTHING
    scale: Literal["guidance_scale", "true_cfg_scale"] = "guidance_scale"  # the argument that guidance is given by
    upcasts: bool = False  # looks at force_upcast in the VAE's config, and decodes in float32
    embeds: bool = False  # guidance is an input of the denoiser: no second batch, and no negative prompt is read
    # Draws from the embeddings of a prompt and of a negative one, and needs no pooled ones or masks beside them.
    embeddings: bool = False
    scores: tuple[Task, ...] = ()  # tasks whose class tells the UNet an aesthetic score, where it was trained with one
    pictures: Parts = ()  # parts that read a picture, which other families have for adapters and checkers alone
    packages: Parts = ()  # Python packages without which the classes fail, though diffusers can be imported without

    @property
    def classes(self) -> dict[Task, str]:
        return {task: f"{stem}Pipeline" for task, stem in self.stems.items()}


def _trio(stem: str) -> dict[Task, str]:
    return {"txt2img": stem, "img2img": f"{stem}Img2Img", "inpaint": f"{stem}Inpaint"}


FAMILIES: dict[str, Family] = {
    "stable-diffusion": Family(_trio("StableDiffusion"), UNET, 50, 7.5, embeddings=True),
    "stable-diffusion-pag": Family(_trio("StableDiffusionPAG"), UNET, 50, 7.5, embeddings=True),
    "stable-diffusion-controlnet": Family(
        {"controlnet": "StableDiffusionControlNet"}, (*UNET, "controlnet"), 50, 7.5, embeddings=True
    ),
    "stable-diffusion-controlnet-pag": Family(
        {"controlnet": "StableDiffusionControlNetPAG"}, (*UNET, "controlnet"), 50, 7.5, embeddings=True
    ),
    "stable-diffusion-depth": Family(
        {"img2img": "StableDiffusionDepth2Img"},
        (*UNET, "depth_estimator"),
        50,
        7.5,
        embeddings=True,
        pictures=("feature_extractor",),
    ),
    "stable-diffusion-instruct": Family({"edit": "StableDiffusionInstructPix2Pix"}, UNET, 100, 7.5, embeddings=True),
    "stable-diffusion-upscale": Family(
        {"upscale": "StableDiffusionUpscale"}, (*UNET, "low_res_scheduler"), 75, 9.0, upcasts=True, embeddings=True
    ),
    "stable-diffusion-latent-upscale": Family({"upscale": "StableDiffusionLatentUpscale"}, UNET, 75, 9.0, multiple=64),
    "stable-diffusion-xl": Family(_trio("StableDiffusionXL"), XL, 50, 5.0, upcasts=True, scores=("img2img", "inpaint")),
    "stable-diffusion-xl-pag": Family(
        _trio("StableDiffusionXLPAG"), XL, 50, 5.0, upcasts=True, scores=("img2img", "inpaint")
    ),
    "stable-diffusion-xl-controlnet": Family(
        {"controlnet": "StableDiffusionXLControlNet"}, (*XL, "controlnet"), 50, 5.0, upcasts=True
    ),
    "stable-diffusion-xl-controlnet-pag": Family(
        {"controlnet": "StableDiffusionXLControlNetPAG"}, (*XL, "controlnet"), 50, 5.0, upcasts=True
    ),
    "stable-diffusion-xl-instruct": Family({"edit": "StableDiffusionXLInstructPix2Pix"}, XL, 100, 5.0, upcasts=True),
    "lcm": Family({"txt2img": "LatentConsistencyModel", "img2img": "LatentConsistencyModelImg2Img"}, UNET, 4, 8.5),
    "kolors": Family({"txt2img": "Kolors", "img2img": "KolorsImg2Img"}, UNET, 50, 5.0, upcasts=True),
    "kolors-pag": Family({"txt2img": "KolorsPAG"}, UNET, 50, 5.0, upcasts=True),
    "if": Family(
        {"txt2img": "IF", "img2img": "IFImg2Img", "inpaint": "IFInpainting"}, IF, 100, 7.0, call=PLAIN, embeddings=True
    ),
    "if-super-resolution": Family(
        {"upscale": "IFSuperResolution"}, (*IF, "image_noising_scheduler"), 50, 4.0, call=PLAIN, embeddings=True
    ),
    "kandinsky": Family(
        {"txt2img": "KandinskyCombined", "img2img": "KandinskyImg2ImgCombined"},
        (*PRIOR, "text_encoder", "tokenizer"),
        100,
        4.0,
        SMALL,
        multiple=64,
    ),
    "kandinsky22": Family(
        {"txt2img": "KandinskyV22Combined", "img2img": "KandinskyV22Img2ImgCombined"},
        PRIOR,
        100,
        4.0,
        SMALL,
        multiple=64,
    ),
    "kandinsky3": Family(
        {"txt2img": "Kandinsky3", "img2img": "Kandinsky3Img2Img"}, (*MOVQ, *TEXT), 25, 3.0, SQUARE, multiple=64
    ),
    "animatediff": Family({"txt2video": "AnimateDiff"}, (*UNET, "motion_adapter"), 50, 7.5, frames=16, fps=8),
    # transformers
    "stable-diffusion-3": Family(_trio("StableDiffusion3"), (*DIT, *TEXT2), 28, 7.0),
    "stable-diffusion-3-pag": Family(
        {"txt2img": "StableDiffusion3PAG", "img2img": "StableDiffusion3PAGImg2Img"}, (*DIT, *TEXT2), 28, 7.0
    ),
    "stable-diffusion-3-controlnet": Family(
        {"controlnet": "StableDiffusion3ControlNet"}, (*DIT, *TEXT2, "controlnet"), 28, 7.0
    ),
    "hunyuan": Family({"txt2img": "HunyuanDiT"}, DIT, 50, 5.0, call=BINS),
    "hunyuan-pag": Family({"txt2img": "HunyuanDiTPAG"}, DIT, 50, 5.0, call=BINS),
    "hunyuan-controlnet": Family({"controlnet": "HunyuanDiTControlNet"}, (*DIT, "controlnet"), 50, 5.0, call=BINS),
    "pixart-alpha": Family({"txt2img": "PixArtAlpha"}, DIT, 20, 4.5, call=BOTH),
    "pixart-sigma": Family({"txt2img": "PixArtSigma"}, DIT, 20, 4.5, call=BOTH),
    "pixart-sigma-pag": Family({"txt2img": "PixArtSigmaPAG"}, DIT, 20, 4.5, call=BOTH),
    "sana": Family({"txt2img": "Sana"}, DIT, 20, 4.5, SQUARE, multiple=32, call=BOTH),
    "sana-pag": Family({"txt2img": "SanaPAG"}, DIT, 20, 4.5, SQUARE, multiple=32, call=BOTH),
    "sana-controlnet": Family(
        {"controlnet": "SanaControlNet"}, (*DIT, "controlnet"), 20, 4.5, SQUARE, multiple=32, call=BOTH
    ),
    "sana-sprint": Family(
        {"txt2img": "SanaSprint", "img2img": "SanaSprintImg2Img"}, DIT, 2, 4.5, SQUARE, multiple=32, call=BOTH
    ),
    "auraflow": Family({"txt2img": "AuraFlow"}, DIT, 50, 3.5, SQUARE, upcasts=True),
    "flux": Family(_trio("Flux"), DIT2, 28, 3.5, latent=128, embeds=True),
    "flux-fill": Family({"inpaint": "FluxFill"}, DIT2, 50, 30.0, latent=128, embeds=True),
    "flux-kontext": Family(
        {"edit": "FluxKontext", "txt2img": "FluxKontext", "inpaint": "FluxKontextInpaint"},
        DIT2,
        28,
        3.5,
        latent=128,
        embeds=True,
    ),
    "flux-controlnet": Family(
        {"controlnet": "FluxControlNet"}, (*DIT2, "controlnet"), 28, 7.0, latent=128, embeds=True
    ),
    "flux2": Family({"txt2img": "Flux2", "edit": "Flux2"}, DIT, 50, 4.0, latent=128),
    "flux2-klein": Family(
        {"txt2img": "Flux2Klein", "edit": "Flux2Klein", "inpaint": "Flux2KleinInpaint"}, DIT, 50, 4.0, latent=128
    ),
    # its inpainting class asks the transformer for a setting that it does not have (diffusers 0.42)
    "chroma": Family({"txt2img": "Chroma", "img2img": "ChromaImg2Img"}, DIT, 35, 5.0, latent=128),
    "lumina": Family({"txt2img": "Lumina"}, DIT, 30, 4.0, call=PLAIN),
    "lumina2": Family({"txt2img": "Lumina2"}, DIT, 30, 4.0),
    "cogview3": Family({"txt2img": "CogView3Plus"}, DIT, 50, 5.0),
    "cogview4": Family({"txt2img": "CogView4"}, DIT, 50, 5.0, multiple=16),
    "glm_image": Family(
        {"txt2img": "GlmImage", "edit": "GlmImage"},
        (*DIT, "vision_language_encoder", "processor"),
        50,
        1.5,
        multiple=32,
    ),
    "hidream": Family({"txt2img": "HiDreamImage"}, (*DIT2, "text_encoder_4", "tokenizer_4"), 50, 5.0, latent=128),
    "krea2": Family({"txt2img": "Krea2"}, DIT, 28, 4.5, SQUARE),
    "nucleusmoe-image": Family({"txt2img": "NucleusMoEImage"}, PROCESSED, 50, 4.0, latent=128),
    "ovis": Family({"txt2img": "OvisImage"}, DIT, 50, 5.0, latent=128),
    "prx": Family({"txt2img": "PRX"}, ("transformer", *TEXT), 28, 4.0, SMALL, call=BINS, packages=FTFY),
    "ernie": Family({"txt2img": "ErnieImage"}, DIT, 50, 4.0, SQUARE),
    "omnigen": Family({"txt2img": "OmniGen"}, ("transformer", "vae", "tokenizer", "scheduler"), 50, 2.5, latent=128),
    "longcat": Family({"txt2img": "LongCatImage"}, (*DIT, "text_processor"), 50, 4.5, latent=128),
    "longcat-edit": Family({"edit": "LongCatImageEdit"}, (*DIT, "text_processor"), 50, 4.5, latent=128),
    "kandinsky5": Family({"txt2img": "Kandinsky5T2I"}, DIT2, 50, 3.5, SQUARE),
    "kandinsky5-edit": Family({"edit": "Kandinsky5I2I"}, DIT2, 50, 3.5, SQUARE),
    "qwenimage": Family(_trio("QwenImage"), DIT, 50, 4.0, latent=128, scale="true_cfg_scale"),
    "qwenimage-controlnet": Family(
        {"controlnet": "QwenImageControlNet"}, (*DIT, "controlnet"), 50, 4.0, latent=128, scale="true_cfg_scale"
    ),
    "qwenimage-edit": Family(
        {"edit": "QwenImageEdit", "inpaint": "QwenImageEditInpaint"},
        (*DIT, "processor"),
        50,
        4.0,
        latent=128,
        scale="true_cfg_scale",
    ),
    "qwenimage-edit-plus": Family(
        {"edit": "QwenImageEditPlus"}, (*DIT, "processor"), 50, 4.0, latent=128, scale="true_cfg_scale"
    ),
    "qwenimage21": Family({"txt2img": "QwenImage21"}, PROCESSED, 40, 1.0, SQUARE, scale="true_cfg_scale"),
    "z-image": Family(_trio("ZImage"), DIT, 50, 5.0, SQUARE),
    "z-image-controlnet": Family({"controlnet": "ZImageControlNet"}, (*DIT, "controlnet"), 50, 5.0, SQUARE),
    "z-image-omni": Family({"txt2img": "ZImageOmni"}, (*DIT, "siglip", "siglip_processor"), 50, 5.0, SQUARE),
    # videos
    "anyflow": Family({"txt2video": "AnyFlow"}, DIT, 50, 1.0, WIDE, frames=81, fps=16, multiple=16),
    "allegro": Family({"txt2video": "Allegro"}, DIT, 100, 7.5, HD, frames=88, fps=15, call=PLAIN),
    "cogvideox": Family({"txt2video": "CogVideoX"}, DIT, 50, 6.0, frames=49, fps=8),
    "cogvideox-i2v": Family({"img2video": "CogVideoXImageToVideo"}, DIT, 50, 6.0, frames=49, fps=8),
    "easyanimate": Family({"txt2video": "EasyAnimate"}, DIT, 50, 5.0, SMALL, frames=49, fps=8, multiple=16),
    "helios": Family(
        {"txt2video": "Helios", "img2video": "Helios"}, DIT, 50, 5.0, (384, 640), frames=132, multiple=16, packages=FTFY
    ),
    "hunyuan-video": Family(
        {"txt2video": "HunyuanVideo"}, DIT2, 50, 6.0, HD, frames=129, fps=15, multiple=16, embeds=True
    ),
    "hunyuan-video-i2v": Family(
        {"img2video": "HunyuanVideoImageToVideo"}, (*DIT2, "image_processor"), 50, 1.0, HD, frames=129, multiple=16
    ),
    "kandinsky5-video": Family({"txt2video": "Kandinsky5T2V"}, DIT2, 50, 5.0, (512, 768), frames=121, multiple=16),
    "kandinsky5-i2v": Family({"img2video": "Kandinsky5I2V"}, DIT2, 50, 5.0, (512, 768), frames=121, multiple=16),
    "ltx": Family(
        {"txt2video": "LTX", "img2video": "LTXImageToVideo"}, DIT, 50, 3.0, (512, 704), frames=161, fps=24, multiple=32
    ),
    "mochi": Family({"txt2video": "Mochi"}, DIT, 64, 4.5, (480, 848), frames=19, fps=30),
    "skyreels-v2": Family(
        {"txt2video": "SkyReelsV2"}, DIT, 50, 6.0, (544, 960), frames=97, fps=24, multiple=16, packages=FTFY
    ),
    "wan": Family({"txt2video": "Wan"}, DIT, 50, 5.0, WIDE, frames=81, fps=16, multiple=16),
    "wan-i2v": Family(
        {"img2video": "WanImageToVideo"},
        DIT,
        50,
        5.0,
        WIDE,
        frames=81,
        fps=16,
        multiple=16,
        pictures=("image_encoder",),
        packages=FTFY,
    ),
}
