"""Train the built-in model from nothing: ``scripts/train_tiny --out DIR``.

Parts: shapes are drawn, the autoencoder is trained, the pictures become latents, UNet and text encoder are trained
together, the decoder learns to put their small mistakes right, the pipeline is written. Each part continues from its
checkpoint in the working folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from diffopt.pipeline.quality.checker import check
from scripts.maintain.tiny import autoencoder, denoiser
from scripts.maintain.tiny.export import save_pipeline
from scripts.maintain.tiny.fitting import Machine, Schedule
from scripts.maintain.tiny.networks import make_tokenizer, parameters

DRAWINGS = 20_000
AUTOENCODER = Schedule(steps=3000, batch=16, peak_rate=2e-3, seed=1)
DENOISER = Schedule(
    steps=4000, batch=48, peak_rate=1e-3, warmup=200, horizon=6500, cooldown=2000, average=0.999, seed=2
)
DECODER = Schedule(steps=2000, batch=16, peak_rate=1e-3, seed=4)
FULL = (AUTOENCODER, DENOISER, DECODER)
SMOKE_DRAWINGS = 96
SMOKE = (
    dataclasses.replace(AUTOENCODER, steps=6, batch=4, warmup=2),
    dataclasses.replace(DENOISER, steps=6, batch=4, warmup=2, cooldown=2),
    dataclasses.replace(DECODER, steps=4, batch=4, warmup=2),
)


def main(arguments: list[str] | None = None) -> None:
    options = _options().parse_args(arguments)
    torch.set_num_threads(1)  # the shards are what runs in parallel
    machine = Machine("cuda", shards=1) if options.device == "cuda" else Machine("cpu", shards=2)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    count, (first, second, third) = (SMOKE_DRAWINGS, SMOKE) if options.smoke else (DRAWINGS, FULL)
    _same_plan(work, count, (first, second, third), machine)

    drawings = autoencoder.make_drawings(count, seed=0)
    vae = autoencoder.train_autoencoder(drawings, first, machine, work)
    pictures = autoencoder.paint_all(drawings, seed=1)
    latents = autoencoder.encode(vae, pictures, machine)
    vae.cpu()
    _report(vae, latents, drawings)
    tokenizer = make_tokenizer()
    prompts = [scene.prompt for scene in drawings.scenes]
    trained = denoiser.train_denoiser(latents, prompts, tokenizer, second, machine, work)
    guesses = denoiser.denoised(trained, tokenizer, latents, prompts, seed=3)
    vae = autoencoder.polish_decoder(vae, drawings, pictures, [latents, guesses], third, machine, work)
    _report(vae, latents, drawings)
    save_pipeline(vae, trained.unet, trained.text_encoder, tokenizer, options.out)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {(parameters(vae) + parameters(trained)) / 1e6:.2f} M parameters, {size / 1e6:.2f} MB")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/train_tiny", description="Train the built-in model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="where the pipeline is written")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints; a run continues from those it finds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--smoke", action="store_true", help="every part, but far too short to learn")
    return parser


def _same_plan(work: Path, count: int, schedules: tuple[Schedule, ...], machine: Machine) -> None:
    """Checkpoints of another plan are refused: continuing from them would be neither run."""
    plan = {
        "drawings": count,
        "schedules": [dataclasses.asdict(schedule) for schedule in schedules],
        "machine": dataclasses.asdict(machine),
    }
    file = work / "plan.json"
    if file.exists() and json.loads(file.read_text()) != plan:
        raise SystemExit(f"{work} holds a run with other settings; choose another --work, or remove it")
    file.write_text(json.dumps(plan, indent=2) + "\n")


def _report(vae: AutoencoderKL, latents: torch.Tensor, drawings: autoencoder.Drawings) -> None:
    """How many of the first 500 reconstructions are right by the strict checker."""
    pictures = autoencoder.decode(vae, latents[:500])
    right = [check(picture, scene).all for picture, scene in zip(pictures, drawings.scenes, strict=False)]
    print(f"reconstructions that the checker accepts: {100 * sum(right) / len(right):.1f} %", flush=True)


if __name__ == "__main__":
    main()
