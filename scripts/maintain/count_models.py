"""Counts a model's parameters and its activations on the meta device, for the figures in ``conf/model``.

For maintainers: ``scripts/count_models`` prints what belongs into an option's YAML. Nothing is computed and no weight
exists, so the largest model is counted within seconds on any machine. Imports torch.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffopt.errors import UsageError
from diffopt.models.random.weights import meta_modules
from diffopt.models.resolve import model_folder
from diffopt.recipe.rules.estimate import estimated_denoiser_batch
from diffopt.schema.model import Activations, Model, Parameters
from scripts.maintain.denoiser_inputs import CALLED, Asked, asked_of, inputs


class LiveValues(TorchDispatchMode):
    """Counts the values of all tensors that are made under it and alive at once.

    Views share a storage and count once; ``weights`` do not count. A value is one number of whatever type. What a
    kernel allocates for itself alone (workspaces of cuDNN) is not seen.
    """

    def __init__(self, weights: nn.Module | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = [] if weights is None else [*weights.parameters(), *weights.buffers()]
        self._weights = {tensor.untyped_storage()._cdata for tensor in tensors}
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._enter(leaf)
        return out

    def _enter(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() // tensor.element_size()
        if key in self._weights or key in self._alive:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._leave(key, size))
        self._now += size
        self.peak = max(self.peak, self._now)

    def _leave(self, key: int, size: int) -> None:
        del self._alive[key]
        self._now -= size


class FusedAttention(TorchFunctionMode):  # type: ignore[no-untyped-call]
    """torch's attention as a fused kernel has it: the result alone, and never the score matrix.

    On the meta device torch would take the plain products. diffusers' dispatcher ends in this function too.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
        query, size = named["query"], named["value"].shape[-1]
        # a kernel keeps the query's layout, so that the heads lie side by side again without a copy
        return torch.empty_like(query) if query.shape[-1] == size else query.new_empty(*query.shape[:-1], size)


def live_values(call: Callable[[], object], weights: nn.Module | None = None) -> int:
    """The most values alive at once while ``call`` runs, what it holds of its own among them."""
    counted = LiveValues(weights)
    with torch.inference_mode(), FusedAttention(), counted:
        call()
    return counted.peak


def count_activations(model: Model, modules: Mapping[str, nn.Module]) -> Activations:
    """Values alive in one call of the denoiser and in the VAE's decoder, at the customary size and one picture.

    ``modules`` are the components on the meta device. They are counted in float32; in half precision a few
    intermediate results stay float32 and count once all the same, so the figures are a lower bound there.
    Raises UsageError for a denoiser whose inputs diffopt does not know.
    """
    if model.denoiser_class not in CALLED:
        raise UsageError(f"model={model.name}: denoiser_inputs does not say how a {model.denoiser_class} is called")
    vae = None if model.vae is None else _meta(modules[model.vae])
    denoiser = _meta(modules[model.denoiser])
    asked = asked_of(model, denoiser.config, vae, estimated_denoiser_batch(model, model.guidance))
    parts = nn.ModuleList([denoiser, *(_meta(modules[name]) for name in {"controlnet"} & modules.keys())])
    return Activations(
        denoise=live_values(lambda: _denoise(model, parts, asked), parts),
        decode=None if vae is None else live_values(lambda: _decode(vae, asked), vae),
        height=model.height,
        width=model.width,
        frames=model.frames,
        guidance=model.guidance,
    )


def count_parameters(model: Model, modules: Mapping[str, nn.Module]) -> Parameters:
    """Parameters by part, shared ones once; a ControlNet counts with the denoiser."""

    def count(*names: str) -> int:
        return sum(parameter.numel() for name in names for parameter in modules[name].parameters())

    return Parameters(
        denoiser=count(model.denoiser, *({"controlnet"} & modules.keys())),
        text_encoders=count(*model.text_encoders),
        vae=0 if model.vae is None else count(model.vae),
    )


def _denoise(model: Model, parts: nn.ModuleList, asked: Asked) -> None:
    call = inputs(model.denoiser_class, asked)
    denoiser, *controlnets = parts
    for controlnet in controlnets:  # its residuals stay alive while the denoiser runs
        config: Any = controlnet.config
        pixels = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
        picture = asked.tensor(asked.batch, 3, asked.height * pixels, asked.width * pixels)
        down, middle = controlnet(**call, controlnet_cond=picture, return_dict=False)
        call |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    denoiser(**call)


def _decode(vae: Any, asked: Asked) -> None:
    config = vae.config
    channels = config.get("latent_channels") or config["z_dim"]
    in_time = any(isinstance(module, nn.Conv3d) for module in vae.modules())
    frames = (asked.frames,) if in_time else ()
    vae.decode(asked.tensor(1, channels, *frames, asked.height, asked.width))


def _meta(module: nn.Module) -> Any:
    """Buffers too: tables of positions are real numbers until now."""
    return module.to("meta").eval()


def report(names: list[str]) -> None:
    """Print the YAML of the model options ``names``; all that have an architecture here when there are none."""
    from diffopt.config import Composer
    from diffopt.config.resolve import compose_requests

    for name in names or Composer().options("model"):
        (request,) = compose_requests([f"model={name}", "model.weights=random"])
        model = request.cell.recipe.model
        folder = model_folder(model)
        assert folder is not None, "random weights are always described by files here"
        modules = meta_modules(folder)
        parameters, activations = count_parameters(model, modules), count_activations(model, modules)
        print(f"{name}:")
        print(_line("parameters", parameters.model_dump()))
        print(_line("activations", activations.model_dump()), flush=True)


def _line(key: str, values: Mapping[str, float | None]) -> str:
    inside = ", ".join(f"{name}: {'null' if value is None else value}" for name, value in values.items())
    return f"  {key}: {{{inside}}}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="count_models", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="model options; all of conf/model when there is none")
    try:
        report(parser.parse_args().names)
    except UsageError as error:
        print(f"count_models: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
