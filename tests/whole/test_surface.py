"""What users and plug-ins may rely on is frozen here. To change it breaks them: do so deliberately, and tell CHANGELOG.

The names of `diffopt`, its verbs and flags are frozen in tests/cli/test_main.py, result.json in tests/results.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from importlib import import_module
from typing import Any

import pytest
from support.documents import DOCUMENTS
from support.places import FAULTY_STEPS

import diffopt
from diffopt.schema.step import Order, Requirements, Site, Step, Trait

COMPOSING = "recipe=, *, overrides=, config_dirs=, trust_config_dirs="
FUNCTIONS = {
    "compose": f"{COMPOSING}, multirun=",
    "load": COMPOSING,
    "optimize": f"pipe, {COMPOSING}",
    "plan": "cell, *, deep=",
    "run": "cell, *, study=, deep=",
    "save_quantized": "pipe, folder",
}
FOR_PLUGINS = {  # by module, each public name; of a function its parameters
    "diffopt.errors": {"DiffoptError": "", "Interrupted": "", "NoEffect": "", "Refusal": "", "UsageError": ""},
    "diffopt.schema.step": {
        **{"Effect": "", "Order": "", "Requirements": "", "Site": "", "Step": "", "Trait": ""},
        "register": "*groups",
    },
    "diffopt.steps.components": {
        **{"Component": "", "Components": "", "DiffusersComponent": "", "DiffusersComponents": "", "Word": ""},
        "attributes": "model, word",
        "missing": "site, components, key",
        "modules": "pipe, site, components, key",
        "parts": "pipe",
    },
    "diffopt.steps.quant.linears": {
        **{"Selection": "", "Shapes": "", "Words": ""},
        "proof": "step, pipe, site, quantized, *, multiple=",
        "quantize": "step, pipe, site, config, *, multiple=",
    },
}
METHODS_OF_A_STEP = {
    "traits": None,  # a property
    "traits_on": "self, hardware",
    "requires": "self",
    "problems": "self, site",
    "load_kwargs": "self, site",
    "dtype_of": "self, part, site",
    "weight_bytes": "self, part, site",
    "on_device": "self, weights, working",
    "activation_share": "self, working, *, batch, height, width",
    "check_loaded": "self, pipe, site",
    "apply": "self, pipe, site",
    "verify": "self, pipe, site",
}
ORDER = "LOAD PLACE ADAPT FUSE QUANTIZE CAST ATTENTION LAYOUT SCHEDULE OFFLOAD COMPILE CACHE"
TRAITS = """
    TRACES GENERATES_CODE HAS_NO_LOWERING CUDA_GRAPHS FULLGRAPH GRAPH_BREAKS MOVES_WEIGHTS HOOKS_COMPONENTS HOOKS_LAYERS
    DIVIDES_DECODING PACKS_ON_DEVICE PINS_IN_PASSING STOCK_PROCESSOR FUSES_QKV QUANTIZES FLOAT8 LIVE_LORA HOT_SWAPS
    CASTS_STORAGE COPIES_MODULES WHOLE_DENOISER CACHES CACHES_BLOCKS COUNTS_STEPS CALLS_TWICE LEARNS_ORDER EXPORTS
    SEARCHES_GEMM
"""
REQUIREMENTS = """
    devices compute_capability exact_compute_capabilities bfloat16_compute_capability packages install dtypes evidence
"""


def parameters(function: Any) -> str:
    """Names of the parameters, with their kinds; those that may be left out end in ``=``."""
    found: list[str] = []
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not any(text.startswith("*") for text in found):
            found.append("*")
        stars = "*" if one.kind is one.VAR_POSITIONAL else ""
        found.append(f"{stars}{one.name}{'' if one.default is one.empty else '='}")
    return ", ".join(found)


def test_the_functions_take_what_they_took() -> None:
    assert {name: parameters(getattr(diffopt, name)) for name in FUNCTIONS} == FUNCTIONS


@pytest.mark.parametrize("name", FOR_PLUGINS)
def test_a_module_for_plugins_has_these_names(name: str) -> None:
    module = import_module(name)
    public: list[str] = module.__all__
    assert public == sorted(public)
    values = {each: getattr(module, each) for each in public}
    found = {each: parameters(value) if inspect.isfunction(value) else "" for each, value in values.items()}
    assert found == FOR_PLUGINS[name]


def test_a_step_can_be_asked_this() -> None:
    found = {name: value for name, value in vars(Step).items() if callable(value) or isinstance(value, property)}
    told = {name: parameters(value) if callable(value) else None for name, value in found.items() if name[0] != "_"}
    assert told == METHODS_OF_A_STEP
    assert [field.name for field in fields(Site)] == ["model", "hardware", "workload", "code_id", "cascade"]


def test_a_step_may_use_these_words() -> None:
    assert [each.name for each in Order] == ORDER.split()
    assert [each.name for each in Trait] == TRAITS.split()
    assert [each.name for each in fields(Requirements)] == REQUIREMENTS.split()


PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = {
    f"{path.name} {at}": text for path in DOCUMENTS for at, text in enumerate(PYTHON.findall(path.read_text("utf-8")))
}
CODE_OF_OTHERS = {  # what CONTRIBUTING shows but steps belongs into this repository
    **{name: text for name, text in BLOCKS.items() if "CONTRIBUTING" not in name or "@register(" in text},
    **{path.name: path.read_text("utf-8") for path in FAULTY_STEPS.glob("*.py")},
}


@pytest.mark.parametrize("place", CODE_OF_OTHERS)
def test_documents_and_plugins_use_nothing_else(place: str) -> None:
    known = {"diffopt": {*diffopt.__all__}, **{module: {*names} for module, names in FOR_PLUGINS.items()}}
    for node in ast.walk(ast.parse(CODE_OF_OTHERS[place])):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "diffopt":
            assert {alias.name for alias in node.names} <= known.get(str(node.module), set()), node.module
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "diffopt":
            assert node.attr in diffopt.__all__


def test_such_code_is_found() -> None:
    assert len(CODE_OF_OTHERS) > 4
