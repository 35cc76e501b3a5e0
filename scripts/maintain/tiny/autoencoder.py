"""Part one: the autoencoder, on pictures painted as they are needed, and the latents of the training pictures."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from diffopt.pipeline.quality.scenes import Scene, all_scenes, held_out
from scripts.maintain.tiny.fitting import Batch, Machine, Schedule, fit
from scripts.maintain.tiny.networks import LATENT_CHANNELS, initialise, make_autoencoder, use_plain_attention
from scripts.maintain.tiny.pictures import colours, place

NOISE = 0.3  # most noise that the decoder learns to see through, in standard deviations of the latents
ANY_COLOURS = 0.15  # part of the pictures that are in colours without a name


@dataclass(frozen=True)
class Drawings:
    """Shapes drawn once: their scenes, and how much of each pixel they cover, (n, 64, 64) of 0 to 255."""

    scenes: list[Scene]
    masks: Tensor


def make_drawings(count: int, seed: int) -> Drawings:
    """Draw ``count`` shapes: half in the center, half of medium size, none of a held-out scene."""
    rng = np.random.default_rng(seed)
    test, validation = held_out()
    hidden = {*test, *validation}
    pool = [scene for scene in all_scenes() if scene not in hidden]
    weight = np.array([(4 if s.position == "center" else 1) * (2 if s.size == "medium" else 1) for s in pool], float)
    scenes = [pool[i] for i in rng.choice(len(pool), count, p=weight / weight.sum())]
    masks = np.stack([np.rint(place(scene, rng) * 255).astype(np.uint8) for scene in scenes])
    return Drawings(scenes, torch.from_numpy(masks))


def paint_all(drawings: Drawings, seed: int) -> Tensor:
    """The pictures (n, 3, 64, 64), -1 to 1, in their scenes' colours."""
    rng = np.random.default_rng(seed)
    pairs = torch.from_numpy(np.stack([np.stack(colours(scene, rng)) for scene in drawings.scenes]))
    return _paint(drawings.masks.float() / 255, pairs)


def _paint(masks: Tensor, pairs: Tensor) -> Tensor:
    """Masks (n, 64, 64) in colour pairs (n, 2, 3) of 0 to 255: pictures (n, 3, 64, 64), -1 to 1."""
    blend = masks[:, None] * pairs[:, 0, :, None, None] + (1 - masks[:, None]) * pairs[:, 1, :, None, None]
    return blend / 127.5 - 1


def train_autoencoder(drawings: Drawings, schedule: Schedule, machine: Machine, folder: Path) -> AutoencoderKL:
    """Train on ``drawings``; the result has latents of mean 0 and standard deviation 1 in every channel."""
    torch.manual_seed(schedule.seed)
    model = make_autoencoder()
    initialise(model.encoder)
    initialise(model.decoder)
    use_plain_attention(model)
    pairs = torch.from_numpy(
        np.stack([np.stack(colours(s, np.random.default_rng(i))) for i, s in enumerate(drawings.scenes)])
    )

    def draw(step: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(len(drawings.scenes), (schedule.batch,), generator=generator)
        masks, own = drawings.masks[chosen].float() / 255, pairs[chosen]
        other = torch.rand(own.shape, generator=generator) * 255
        use_other = torch.rand(schedule.batch, 1, 1, generator=generator) < ANY_COLOURS
        return {
            "pictures": _paint(masks, torch.where(use_other, other, own)),
            "masks": masks,
            "noise": torch.randn(schedule.batch, LATENT_CHANNELS, 8, 8, generator=generator),
            "amount": torch.rand(schedule.batch, 1, 1, 1, generator=generator) * NOISE,
        }

    trained = fit("autoencoder", model, draw, _loss, schedule=schedule, machine=machine, folder=folder)
    assert isinstance(trained, AutoencoderKL)
    trained.cpu()
    _normalise(trained, paint_all(Drawings(drawings.scenes[:1024], drawings.masks[:1024]), seed=1))
    return trained


def _loss(model: Any, batch: Batch) -> Tensor:
    """Reconstruction from noisy latents; edges and shape count more than background, which is most of a picture."""
    pictures, masks = batch["pictures"], batch["masks"][:, None]
    latents = model.quant_conv(model.encoder(pictures))[:, :LATENT_CHANNELS].float()
    spread = latents.detach().std((0, 2, 3), keepdim=True)
    noisy = latents + batch["amount"] * spread * batch["noise"]
    error = model.decoder(model.post_quant_conv(noisy)).float() - pictures
    loss: Tensor = _weighted(error, masks) + 1e-4 * latents.square().mean()
    return loss


def _weighted(error: Tensor, masks: Tensor) -> Tensor:
    edge = F.max_pool2d(masks, 3, 1, 1) + F.max_pool2d(-masks, 3, 1, 1)
    weight = 1 + 2 * masks + 4 * edge
    weighted = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
    loss: Tensor = weighted + 0.5 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
    return loss


def polish_decoder(
    model: AutoencoderKL,
    drawings: Drawings,
    pictures: Tensor,
    sources: list[Tensor],
    schedule: Schedule,
    machine: Machine,
    folder: Path,
) -> AutoencoderKL:
    """Train the decoder on, with the encoder as it is.

    ``pictures`` (n, 3, 64, 64) are what each of ``sources``, latents (n, 8, 8, 8), should become: the encoder's own,
    and what the denoiser makes of them, so that the decoder learns to put its small mistakes right.
    """
    model = copy.deepcopy(model).requires_grad_(False)
    model.decoder.requires_grad_(True)
    use_plain_attention(model)
    choices = torch.stack(sources)

    def draw(step: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(len(pictures), (schedule.batch,), generator=generator)
        latents = choices[torch.randint(len(sources), (schedule.batch,), generator=generator), chosen]
        amount = torch.rand(schedule.batch, 1, 1, 1, generator=generator) * NOISE
        return {
            "latents": latents + amount * torch.randn(latents.shape, generator=generator),
            "pictures": pictures[chosen],
            "masks": drawings.masks[chosen].float() / 255,
        }

    trained = fit("decoder", model, draw, _decoder_loss, schedule=schedule, machine=machine, folder=folder)
    assert isinstance(trained, AutoencoderKL)
    return trained.cpu()


def _decoder_loss(model: Any, batch: Batch) -> Tensor:
    made = model.decoder(model.post_quant_conv(batch["latents"])).float()
    return _weighted(made - batch["pictures"], batch["masks"][:, None])


@torch.no_grad()
def _normalise(model: AutoencoderKL, pictures: Tensor) -> None:
    """Fold mean and standard deviation of each latent channel into the two 1x1 convolutions around it.

    The posterior gets the spread that the decoder has learned to see through on average.
    """
    channels = LATENT_CHANNELS
    into, out = model.quant_conv, model.post_quant_conv
    latents = torch.cat([into(model.encoder(part))[:, :channels] for part in torch.split(pictures, 64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std.view(1, -1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.weight[:channels] /= std.view(-1, 1, 1, 1)
    into.weight[channels:] = 0
    into.bias[channels:] = 2 * math.log(NOISE / 2)


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: Tensor, machine: Machine) -> Tensor:
    """Latents (n, 8, 8, 8) of pictures (n, 3, 64, 64): the posterior's mean."""
    model = model.to(machine.device).eval()
    parts = [model.encode(part.to(machine.device)).latent_dist.mode().cpu() for part in torch.split(pictures, 64)]
    return torch.cat(parts)


@torch.no_grad()
def decode(model: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """RGB pictures (n, 64, 64, 3), 0 to 255, of latents (n, 8, 8, 8)."""
    pixels = torch.cat([model.decode(part).sample for part in torch.split(latents, 64)]).clamp(-1, 1)
    return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
