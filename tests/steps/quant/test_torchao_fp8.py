"""Dynamic float8: torchao allows it on newer GPUs alone, but torch multiplies float8 matrices on the CPU too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.option_steps import step
from support.tiny_families import apply, cell, drawn, pipelines, verify
from torchao.float8 import inference

from diffopt.errors import NoEffect

OTHER = {"fp8_dynamic": "fp8_dynamic_row", "fp8_dynamic_row": "fp8_dynamic"}


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(inference, "is_MI300", lambda: True)  # one of the GPUs that torchao allows


@pytest.mark.parametrize("family", ["sd15", "flux_dev"])
@pytest.mark.parametrize("name", OTHER)
def test_weights_and_inputs_are_float8(name: str, family: str) -> None:
    asked = cell(family, "precision=bf16")
    plain, pipes = (pipelines(asked, torch.bfloat16) for _ in range(2))
    apply(pipes, asked, step("quant", name))
    difference = np.abs(drawn(pipes, asked) - drawn(plain, asked)).mean()
    assert 0 < difference < 0.06
    (effect,) = verify(pipes, asked, step("quant", name))
    denoiser = getattr(pipes[0], asked.recipe.model.denoiser)
    weights = [layer.weight for layer in denoiser.modules() if isinstance(layer, torch.nn.Linear)]
    narrow = [w for w in weights if getattr(w, "qdata", w).dtype is torch.float8_e4m3fn]
    assert effect.numbers[asked.recipe.model.denoiser] == len(narrow) > 20
    per_row = name == "fp8_dynamic_row"
    assert {w.scale.numel() for w in narrow} == ({w.shape[0] for w in narrow} if per_row else {1})
    with pytest.raises(NoEffect):
        verify(pipes, asked, step("quant", OTHER[name]))
