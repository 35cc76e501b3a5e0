"""The counter of models against sums by hand, and the denoisers' inputs against what pipelines really pass."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import yaml
from support.tiny import tiny
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from diffopt.config.resolve import compose_requests
from diffopt.machine.paths import shipped_conf
from diffopt.models.calls import calls_of_models
from diffopt.models.random.weights import meta_modules
from diffopt.models.resolve import packaged_architecture
from diffopt.pipeline.load import load_pipeline
from diffopt.recipe.rules.estimate import estimated_denoiser_batch
from diffopt.schema.model import Model
from scripts.maintain import denoiser_inputs
from scripts.maintain.count_models import _decode, _denoise, count_activations, live_values, report
from scripts.maintain.denoiser_inputs import asked_of

# One family for each way in which a denoiser is called.
FAMILIES = (
    "cogvideox_2b",
    "cogvideox_5b",
    "deepfloyd_if_ii_m",
    "flux2_klein",
    "flux_dev",
    "hunyuan_video",
    "ltx_video",
    "pixart_sigma",
    "qwen_image",
    "sana_1600m",
    "sd15",
    "sd35_medium",
    "sd_x4_upscaler",
    "sdxl",
    "wan21_t2v_1_3b",
    "z_image",
)
FREE_LENGTH = {"qwen_image": "encoder_hidden_states", "z_image": "cap_feats"}  # prompts are not padded


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_chain_of_linears_holds_its_input_and_two_more() -> None:
    """The caller holds the input; inside, the input and the output of the layer that runs."""
    chain = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 64), nn.Linear(64, 16))

    def call() -> None:
        given = torch.empty(3, 8)
        chain(given)

    assert live_values(call, chain) == 3 * (8 + 32 + 64)


def test_views_count_once_and_weights_not_at_all() -> None:
    layer = nn.Linear(16, 16)

    def call() -> None:
        given = torch.empty(4, 16)
        again = given.view(2, 32).t()
        assert again.shape == (32, 2)
        assert layer.weight.t().shape == (16, 16)

    assert live_values(call, layer) == 4 * 16


def test_what_is_dropped_is_not_counted_any_more() -> None:
    def call() -> None:
        first = torch.empty(100)
        del first
        torch.empty(70)

    assert live_values(call) == 100


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_keeps_no_score_matrix(device: str) -> None:
    """Query, key, value and result of 2 heads, 1000 tokens, 8 channels; the scores would be 2 x 1000 x 1000."""

    def call() -> None:
        query, key, value = (torch.empty(1, 1000, 2, 8, device=device).transpose(1, 2) for _ in range(3))
        out = functional.scaled_dot_product_attention(query, key, value)
        assert out.transpose(1, 2).is_contiguous()

    assert live_values(call) == 4 * 2 * 1000 * 8


def test_the_meta_device_counts_what_the_cpu_does() -> None:
    """The same network with values and without."""

    def network(device: str) -> int:
        layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3))
        layers.to(device)
        return live_values(lambda: layers(torch.empty(2, 3, 10, 10, device=device)), layers)

    assert network("cpu") == network("meta") == 2 * 100 * (3 + 8 + 8)


def test_the_decoder_of_stable_diffusion_by_hand() -> None:
    """The last block at full size: its input, the norm's result and SiLU's, each 256 channels; and the latents twice.

    The norm's result dies when the convolution has run, so that there never is a fourth.
    """
    model = option("sd15")
    (vae,) = meta_modules(packaged_architecture("sd15"), without=("unet", "text_encoder")).values()
    latents = 4 * 64 * 64
    asked = asked_of(model, {}, vae, 1)
    assert live_values(lambda: vae.decode(asked.tensor(1, 4, 64, 64)), vae) == 3 * 256 * 512 * 512 + 2 * latents


@pytest.mark.parametrize("name", ["sd15", "sd15_controlnet", "flux_dev"])
def test_a_real_run_holds_what_the_meta_device_counts(name: str) -> None:
    """The same parts with values, on the CPU."""
    model = option(name, weights="tiny")
    folder = packaged_architecture(str(model.architecture), tiny=True)
    modules = meta_modules(folder, without=model.text_encoders)
    counted = count_activations(model, modules)
    real = {part: module.to_empty(device="cpu") for part, module in modules.items()}
    denoiser, vae = real[model.denoiser], real["vae"]
    asked = asked_of(model, denoiser.config, vae, estimated_denoiser_batch(model, model.guidance))
    parts = nn.ModuleList([denoiser, *(part for name, part in real.items() if name == "controlnet")])

    class OnCpu(TorchDispatchMode):
        """Tensors that would be made on the meta device are made here."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **{**(kwargs or {}), **({"device": "cpu"} if "device" in (kwargs or {}) else {})})

    with OnCpu():
        assert live_values(lambda: _denoise(model, parts, asked), parts) == counted.denoise
        assert live_values(lambda: _decode(vae, asked), vae) == counted.decode


def test_the_script_prints_what_the_option_holds(capsys: pytest.CaptureFixture[str]) -> None:
    report(["sd15_controlnet"])
    printed = yaml.safe_load(capsys.readouterr().out)["sd15_controlnet"]
    model = option("sd15_controlnet")
    assert printed == {
        "parameters": model.parameters.model_dump(),
        "activations": model.activations.model_dump(),
    }


COUNTED = [path.stem for path in sorted(shipped_conf().glob("model/*.yaml")) if not path.stem.startswith("tiny")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COUNTED if name not in ("local", "hub")])
def test_options_hold_what_is_counted(name: str) -> None:
    model = option(name)
    modules = meta_modules(packaged_architecture(str(model.architecture)), without=model.text_encoders)
    assert model.activations.denoise is not None
    assert model.activations == count_activations(model, modules)


class Called(Exception):
    """Ends a pipeline at the first call of its denoiser."""


@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_are_those_that_the_pipeline_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (request,) = compose_requests([*tiny(name), "hardware=cpu"])
    cell = request.cell
    model = cell.recipe.model
    pipe = load_pipeline(model, cell.workload.task, device="cpu", dtype={"default": torch.float32})
    denoiser = getattr(pipe, model.denoiser)
    passed: dict[str, Any] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        passed.update(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
        raise Called

    denoiser.register_forward_pre_hook(record, with_kwargs=True)
    with pytest.raises(Called):
        calls_of_models([pipe], cell.recipe.model.stages, cell.workload)[0](None)

    if name in FREE_LENGTH:
        length = passed[FREE_LENGTH[name]][0].shape[0]
        assert length <= denoiser_inputs.UNPADDED
        monkeypatch.setattr(denoiser_inputs, "UNPADDED", length)
    vae = None if model.vae is None else getattr(pipe, model.vae)
    asked = asked_of(model, denoiser.config, vae, estimated_denoiser_batch(model, cell.workload.guidance))
    assert shapes(denoiser_inputs.inputs(model.denoiser_class, asked)) == shapes(passed)


def shapes(value: Any) -> Any:
    """The value with tensors as their shapes; None where it holds none. Times are one for all, or one each."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape) if value.ndim > 1 else None
    if isinstance(value, Mapping):
        return {key: shape for key, part in value.items() if (shape := shapes(part)) is not None} or None
    if isinstance(value, list | tuple):
        return [shape for part in value if (shape := shapes(part)) is not None] or None
    return None


def option(name: str, weights: str = "random") -> Model:
    """A model option, with random weights at full size or tiny ones."""
    (request,) = compose_requests([f"model={name}", f"model.weights={weights}", "hardware=cpu"])
    return request.cell.recipe.model
