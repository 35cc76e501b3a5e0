"""Draw the pictures that a cell is judged by, in the calls that are timed, and keep them with their latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from diffopt.machine.files import write_bytes
from diffopt.models.calls import stages_of_pictures
from diffopt.pipeline.outputs import save_pictures
from diffopt.recipe.cell import Cell
from diffopt.results.drawing import LATENTS

if TYPE_CHECKING:
    from diffopt.pipeline.meter import Meter


def draw_for_comparison(meter: Meter, cell: Cell, folder: Path) -> tuple[str, ...]:
    """Draw ``cell.quality`` into a folder, batch by batch; the last batch is filled up with its last picture.

    Returns the names of the files. Keeps besides, of each picture, what the last iteration of the last stage left: its
    latents, as they were computed.
    """
    asked = cell.quality.pictures
    if cell.recipe.model.embeddings is not None:  # which are drawn with the seed, whatever the prompt
        asked = tuple((prompt, seed + index) for index, (prompt, seed) in enumerate(asked))
    names: list[str] = []
    latents: dict[str, torch.Tensor] = {}
    size = 1 if len(meter.stages) > 1 else cell.workload.batch_size  # later stages draw the first picture alone
    for begin in range(0, len(asked), size):
        part = list(asked[begin : begin + size])
        prompts, seeds = zip(*_filled(part, cell.workload.batch_size), strict=True)
        meter.call(stages_of_pictures(meter.stages, prompts, seeds))
        outputs = meter.outputs[: len(part)]
        names += save_pictures(outputs, folder, cell.id, seeds[: len(part)], first=begin, fps=cell.recipe.model.fps)
        assert meter.latents is not None, "a call ends with an iteration"
        for index, latent in enumerate(meter.latents[: len(part)]):
            latents[str(begin + index)] = latent.detach().to("cpu").contiguous()
    write_bytes(folder / LATENTS, save(latents))
    return tuple(names)


def _filled(part: Sequence[tuple[str, int]], size: int) -> list[tuple[str, int]]:
    return [*part, *[part[-1]] * (size - len(part))]
