"""diffusers' classes that hold several models in one component, and save each into a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# By class: what they hold, and the attribute that has them.
SEVERAL: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "FluxMultiControlNetModel": ("ControlNets", "nets"),
        "HunyuanDiT2DMultiControlNetModel": ("ControlNets", "nets"),
        "MultiAdapter": ("adapters", "adapters"),
        "MultiControlNetModel": ("ControlNets", "nets"),
        "MultiControlNetUnionModel": ("ControlNets", "nets"),
        "QwenImageMultiControlNetModel": ("ControlNets", "nets"),
        "SD3MultiControlNetModel": ("ControlNets", "nets"),
    }
)
