"""Part two: UNet and text encoder together, on the latents of the training pictures and their prompts."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from scripts.maintain.tiny.fitting import Batch, Machine, Schedule, fit
from scripts.maintain.tiny.networks import initialise, make_scheduler, make_text_encoder, make_unet, use_plain_attention

NO_PROMPT = 0.1  # part of the pictures that are shown without their prompt, for classifier-free guidance


class Denoiser(nn.Module):
    """What is trained together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = make_unet()
        self.text_encoder = make_text_encoder(tokenizer)

    def forward(self, latents: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """The velocity (n, 8, 8, 8) of noisy latents at ``times`` (n,), told the prompts' ``tokens`` (n, 77)."""
        velocity: Tensor = self.unet(latents, times, self.text_encoder(tokens).last_hidden_state).sample
        return velocity


def train_denoiser(
    latents: Tensor, prompts: list[str], tokenizer: CLIPTokenizer, schedule: Schedule, machine: Machine, folder: Path
) -> Denoiser:
    """Train on latents (n, 8, 8, 8) of mean 0 and standard deviation 1 and the prompts that describe them."""
    torch.manual_seed(schedule.seed)
    model = Denoiser(tokenizer)
    initialise(model.unet)
    use_plain_attention(model)
    tokens = _tokens(tokenizer, [*prompts, ""])
    kept = make_scheduler().alphas_cumprod

    def draw(step: int, generator: torch.Generator) -> Batch:
        n = schedule.batch
        chosen = torch.randint(len(prompts), (n,), generator=generator)
        silent = torch.rand(n, generator=generator) < NO_PROMPT
        # one time in each n-th of the range, so that batches differ less
        times = ((torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n * 1000).long()
        noise = torch.randn(n, *latents.shape[1:], generator=generator)
        signal = kept[times].sqrt().view(-1, 1, 1, 1)
        spread = (1 - kept[times]).sqrt().view(-1, 1, 1, 1)
        return {
            "noisy": signal * latents[chosen] + spread * noise,
            "velocity": signal * noise - spread * latents[chosen],
            "times": times,
            "tokens": torch.where(silent[:, None], tokens[-1], tokens[chosen]),
        }

    trained = fit("denoiser", model, draw, _loss, schedule=schedule, machine=machine, folder=folder)
    assert isinstance(trained, Denoiser)
    return trained.cpu()


@torch.no_grad()
def denoised(model: Denoiser, tokenizer: CLIPTokenizer, latents: Tensor, prompts: list[str], seed: int) -> Tensor:
    """What the denoiser takes latents (n, 8, 8, 8) to be when it sees them with noise, with guidance of 1 to 4.

    The noise is that of a time between 50 and 500 of 1,000.
    """
    tokens, empty = _tokens(tokenizer, prompts), _tokens(tokenizer, [""])
    kept, generator = make_scheduler().alphas_cumprod, torch.Generator().manual_seed(seed)
    parts = []
    for index in torch.split(torch.arange(len(latents)), 64):
        n = len(index)
        times = torch.randint(50, 500, (n,), generator=generator)
        scale = 1 + 3 * torch.rand(n, 1, 1, 1, generator=generator)
        signal, spread = kept[times].sqrt().view(-1, 1, 1, 1), (1 - kept[times]).sqrt().view(-1, 1, 1, 1)
        noisy = signal * latents[index] + spread * torch.randn(n, *latents.shape[1:], generator=generator)
        told = model(noisy, times, tokens[index])
        untold = model(noisy, times, empty.expand(n, -1))
        parts.append(signal * noisy - spread * (untold + scale * (told - untold)))
    return torch.cat(parts)


def _tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    encoded = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    predicted = model(batch["noisy"], batch["times"], batch["tokens"])
    return F.mse_loss(predicted.float(), batch["velocity"])
