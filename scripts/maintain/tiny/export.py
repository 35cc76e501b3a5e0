"""The trained components as a pipeline folder in the Hugging Face layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.maintain.tiny.networks import make_scheduler


def save_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    target: Path,
) -> None:
    """Write the pipeline to ``target``, replacing what is there: weights as float16, computed with as float32.

    The components are rounded to float16 in place. Nothing in the folder depends on where or when it was made.
    """
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (vae, unet, text_encoder):
        nn.Module.to(part, torch.float16)  # the classes' own `to` warns of layers that they do not have
    if target.exists():
        shutil.rmtree(target)
    pipe.save_pretrained(target, safe_serialization=True)
    for config in target.glob("*/config.json"):
        _tidy(config)
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes them readable by their owner only


def _tidy(config: Path) -> None:
    """Remove where the component came from, and have the text encoder loaded as float32.

    By default diffusers loads its models in float32, but transformers its own in the config's dtype; float16 there
    would give a pipeline of mixed dtypes, which cannot run.
    """
    data = json.loads(config.read_text())
    data.pop("_name_or_path", None)
    if "dtype" in data:
        data["dtype"] = "float32"
    config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
