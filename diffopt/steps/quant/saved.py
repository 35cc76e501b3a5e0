"""Quantized pipelines as folders in the Hugging Face layout: safetensors alone, read back by plain diffusers.

Nothing of the format is ours. torchao splits each of its tensors into plain ones and a description in the file's
metadata; diffusers and transformers write and read that where a model carries their quantizer, which is lent to the
components here while they are saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import Refusal
from diffopt.steps.components import parts
from diffopt.steps.quant.linears import config_quantized_with, is_lora_layer_path, linears_replaced_by_fused

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn


def save_quantized(pipe: DiffusionPipeline, folder: str | Path) -> None:
    """Write a pipeline with the weights that the quant group made of it.

    Read it with ``DiffusionPipeline.from_pretrained(folder, dtype=…)`` and the dtype that the pipeline had, or with
    ``diffopt run model=local model.path=FOLDER quant=none`` and the same precision; the pictures are the same. Weights
    of ``quant=fp8_storage`` are read back widened, so choose that option again. What other steps changed (attention,
    layout, compile) is not in the folder.

    Raises Refusal for what a folder cannot hold: no quantized weights, fused projections, a LoRA that stays apart,
    compiled or offloaded modules.
    """
    modules = parts(pipe)
    quantized = {
        name: config for name, module in modules.items() if (config := config_quantized_with(module)) is not None
    }
    if not quantized and not any(_stored_in_float8(module) for module in modules.values()):
        raise Refusal("save_quantized: nothing of this pipeline is quantized; use its own save_pretrained")
    for name, module in modules.items():
        _check_savable(name, module)
    with ExitStack() as lent:
        for name, config in quantized.items():
            lent.enter_context(_quantizer(modules[name], config))
        pipe.save_pretrained(str(folder), safe_serialization=True)


def _stored_in_float8(module: nn.Module) -> bool:
    return any(weight.dtype.itemsize == 1 for weight in module.parameters())


def _check_savable(name: str, module: nn.Module) -> None:
    if linears_replaced_by_fused(module):
        raise Refusal(f"save_quantized: the projections of {name} are fused, which no folder can tell; use fuse=none")
    if any(is_lora_layer_path(path) for path, _ in module.named_modules()):
        raise Refusal(
            f"save_quantized: {name} has the layers of a LoRA, which plain diffusers does not read back; use lora=fused"
        )
    if any(weight.is_meta for weight in module.parameters()):
        raise Refusal(f"save_quantized: the weights of {name} are offloaded; use memory=resident")
    if any("_orig_mod" in path for path, _ in module.named_modules()):
        raise Refusal(f"save_quantized: {name} is compiled; use compile=none")


@contextmanager
def _quantizer(module: Any, config: Any) -> Iterator[None]:
    """Let the component carry the quantizer of the library that it comes from, with torchao's ``config``."""
    import diffusers

    of_diffusers = isinstance(module, diffusers.ModelMixin)
    before = module._internal_dict if of_diffusers else None
    module.hf_quantizer = _of_diffusers(config) if of_diffusers else _of_transformers(config)
    described = module.hf_quantizer.quantization_config
    if of_diffusers:
        module.register_to_config(quantization_config=described)
    else:
        module.config.quantization_config = described
    try:
        yield
    finally:
        del module.hf_quantizer
        if of_diffusers:
            module._internal_dict = before
        else:
            del module.config.quantization_config


def _of_diffusers(config: Any) -> Any:
    from diffusers import TorchAoConfig
    from diffusers.quantizers.torchao import TorchAoHfQuantizer

    quantizer = TorchAoHfQuantizer(TorchAoConfig(config), pre_quantized=True)
    quantizer.offload = False  # what validate_environment, which is for loading, would set
    return quantizer


def _of_transformers(config: Any) -> Any:
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    return TorchAoHfQuantizer(TorchAoConfig(config), pre_quantized=True)
