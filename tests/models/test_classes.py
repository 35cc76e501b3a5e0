"""Records of diffusers' classes: complete, about classes that exist, for all that the model options name."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import diffusers
import pytest
from support.option_steps import values
from torch import nn

from diffopt.models import classes
from diffopt.models.classes import DENOISERS, PIPELINES, VAES
from diffopt.models.classes.denoisers import _KNOWN, _PARTLY_KNOWN, Attention, Caches
from diffopt.models.classes.pipelines import DenoiserCalls
from diffopt.models.random.weights import meta_modules
from diffopt.models.resolve import PACKAGED
from diffopt.recipe.options import option_names

RECORDS = (classes.Denoiser, Attention, Caches, classes.Vae, classes.Pipeline, classes.SamplerCalls, DenoiserCalls)
INDEXES = sorted(PACKAGED.glob("*/model_index.json"))
WITH_VAE = sorted(path.parents[2].name for path in PACKAGED.glob("*/tiny/vae/config.json"))


def class_of(index: dict[str, Any], *names: str) -> str | None:
    return next((index[name][1] for name in names if name in index), None)


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_has_no_defaults_and_stays_as_it_is(record: Any) -> None:
    for field in dataclasses.fields(record):
        assert field.default is dataclasses.MISSING, field.name
        assert field.default_factory is dataclasses.MISSING, field.name
    assert record.__dataclass_params__.frozen


@pytest.mark.parametrize("table", [DENOISERS, PIPELINES, VAES], ids=["denoisers", "pipelines", "vaes"])
def test_every_class_exists_in_the_installed_diffusers(table: Any) -> None:
    assert [name for name in table if not hasattr(diffusers, name)] == []
    with pytest.raises(TypeError):
        table["New"] = None


def test_a_denoiser_has_one_record() -> None:
    assert not _KNOWN.keys() & _PARTLY_KNOWN.keys()


def test_a_vae_that_a_denoiser_names_has_a_record() -> None:
    vaes = {known.vae for known in DENOISERS.values()} - {None}
    assert vaes <= VAES.keys()


def test_every_class_of_a_model_option_is_known_in_full() -> None:
    """Nothing is left open for them: what ``None`` means "not known" is told."""
    options = [values("model", name) for name in option_names("model")]
    named = [option for option in options if option.get("denoiser_class")]
    assert len(named) > 15
    for option in named:
        known = DENOISERS[option["denoiser_class"]]
        assert None not in (known.process, known.heads, known.caches.enabled), option["denoiser_class"]
        for name in {*(option.get("pipelines") or {}).values()} - {None}:
            calls = PIPELINES[name]
            assert None not in (calls.sampler, calls.denoiser, calls.loras), name


@pytest.mark.parametrize("path", INDEXES, ids=[path.parent.name for path in INDEXES])
def test_denoisers_come_with_the_vae_that_they_name(path: Any) -> None:
    index = json.loads(path.read_text(encoding="utf-8"))
    name, vae = class_of(index, "unet", "transformer"), class_of(index, "vae", "movq")
    assert name is not None
    assert DENOISERS[name].vae in (None, vae)
    assert vae is None or vae in VAES


@pytest.mark.parametrize("name", WITH_VAE)
def test_vaes_have_the_linears_and_the_projections_that_are_told(name: str) -> None:
    from diffopt.steps.attention.processors import attention_modules
    from diffopt.steps.fuse import _reason

    index = json.loads((PACKAGED / name / "tiny" / "model_index.json").read_text(encoding="utf-8"))
    (vae,) = meta_modules(PACKAGED / name / "tiny", without=set(index) - {"vae"}).values()
    known = VAES[type(vae).__name__]
    assert any(_reason(attention) is None for attention in attention_modules(vae).values()) is known.fuses
    if known.linears is not None:
        assert any(isinstance(part, nn.Linear) for part in vae.modules()) is known.linears


def test_what_is_not_known_is_let_through_and_a_unet_is_told_by_its_name() -> None:
    unknown = classes.denoiser_class_record("NewTransformer2DModel")
    assert unknown is classes.UNKNOWN_DENOISER
    assert (unknown.process, unknown.caches.enabled, unknown.attention.masks) == (None, None, None)
    assert unknown.heads == "stated"
    said = (unknown.keeps_float32, unknown.guides_apart, unknown.attention.separate, unknown.attention.stock)
    assert not any(said)
    assert unknown.int4_padded == max(known.int4_padded for known in DENOISERS.values())
    for name, heads in {"UNetMotionModel": None, "Kandinsky3UNet": "stated"}.items():
        unet = classes.denoiser_class_record(name)
        assert (unet.process, unet.caches.enabled, unet.heads) == ("diffusion", False, heads)
    assert classes.pipeline_class_record("NewPipeline") is classes.UNKNOWN_PIPELINE
    assert set(dataclasses.astuple(classes.UNKNOWN_PIPELINE)) == {None}
    assert classes.vae_class_record(None) is classes.vae_class_record("NewAutoencoder") is classes.UNKNOWN_VAE
    assert dataclasses.astuple(classes.UNKNOWN_VAE) == (None, None, None, False)


def test_they_are_read_without_torch() -> None:
    code = "import sys, diffopt.models.classes; print(sorted({'torch', 'diffusers', 'hydra'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
