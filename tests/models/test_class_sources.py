"""What is said of diffusers' classes where a wrong word would let a plan pass, against their source."""

from __future__ import annotations

import ast
import re

import pytest
from support.diffusers_source import Source, class_in, class_names

from diffopt.models.classes import DENOISERS, FAMILIES, PIPELINES, SEVERAL, pipeline_class_record
from diffopt.steps.scheduler.support import SAMPLERS

PIPELINE_CLASSES = sorted({cls for family in FAMILIES.values() for cls in family.classes.values()} | PIPELINES.keys())
DENOISED = {"denoised", "pred_original_sample", "pred_x0"}
CUSTOMARY = {"self", "num_inference_steps", "device", "timesteps", "sigmas", "mu", "strength"}


def written(cls: str) -> Source:
    return class_in("pipelines", cls)


def asked_arguments(source: Source) -> set[str]:
    """What a pipeline gives to set_timesteps beyond the customary."""
    calls = [node for node in ast.walk(source.node) if isinstance(node, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func) in ("retrieve_timesteps", "self.scheduler.set_timesteps")]
    return {word.arg for call in calls for word in call.keywords if word.arg} - CUSTOMARY


@pytest.mark.parametrize("cls", PIPELINE_CLASSES)
def test_what_pipelines_ask_of_their_samplers(cls: str) -> None:
    source, calls = written(cls), pipeline_class_record(cls).sampler
    text = ast.unparse(source.node)
    asks = asked_arguments(source) | (
        {"denoised"} if re.search(r", denoised = self\.scheduler\.step\(", text) else set()
    )
    assert set(calls.asks if calls else ()) == asks
    once = re.search(r"if num_inference_steps == 1:\s+latents = self\.scheduler\.step\(.*\)\[1\]", text)
    assert (calls.asks_in_one_step if calls else ()) == (("denoised",) if once else ())


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_samplers_give(name: str) -> None:
    source = class_in("schedulers", name)
    step = source.function("step")
    assert step is not None
    pairs = [node for node in ast.walk(step) if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)]
    seconds = {ast.unparse(pair.value.elts[1]) for pair in pairs if len(pair.value.elts) > 1}  # type: ignore[union-attr]
    given = {"denoised"} if seconds & DENOISED else set()
    asked = {word for known in PIPELINES.values() if known.sampler for word in known.sampler.asks}
    assert SAMPLERS[name].gives == given | (source.arguments("set_timesteps") & asked)


def test_classes_that_hold_several_models_are_those_that_save_several_folders() -> None:
    found = {}
    for name, text in class_names("models").items():
        if "def save_pretrained" not in text:
            continue
        source = class_in("models", name)
        save = source.function("save_pretrained")
        lists = re.findall(r"self\.(\w+) = nn\.ModuleList\(", ast.unparse(source.node))
        if save is not None and "_{" in ast.unparse(save) and lists:
            found[name] = lists[0]
    assert len(found) >= 2
    held = {name: attribute for name, (_, attribute) in SEVERAL.items()}
    assert {name: held.get(name) for name in found} == found
    # those without a way of their own to be saved derive from one that has it, or are saved by their pipeline alone
    assert {name for name in class_names("models") if name.startswith("Multi") or "MultiControlNet" in name} - {
        "MultiHeadCrossAttention",
        "MultiIPAdapterImageProjection",
    } <= SEVERAL.keys()


TABLES = {"pos_embed_max_size", "rope_max_seq_len", "axes_lens", "use_learned_positional_embeddings"}


def test_every_table_of_positions_that_a_config_tells_is_known() -> None:
    found = {}
    for name, text in class_names("models").items():
        if "ModelMixin" not in text or not any(key in text for key in TABLES):
            continue
        source = class_in("models", name)
        if any("ModelMixin" in ast.unparse(base) for base in source.node.bases):
            keys = sorted(source.arguments("__init__") & TABLES)
            found |= dict.fromkeys([name] if keys else [], "".join(keys))
    assert found.pop("CogView4Transformer2DModel") == "pos_embed_max_size"  # which nothing reads
    assert "pos_embed_max_size" not in class_names("models")["CogView4RotaryPosEmbed"]
    told = {name: known.positions[1] for name, known in DENOISERS.items() if known.positions is not None}
    assert {name: key for name, key in told.items() if isinstance(key, str)} == found
    assert told["Kandinsky5Transformer3DModel"] == 128
    assert "max_pos=(128, 128, 128)" in class_names("models")["Kandinsky5RoPE3D"]


@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_draw_from_embeddings_alone(name: str) -> None:
    family = FAMILIES[name]
    for cls in family.classes.values():
        given = written(cls).arguments("__call__")
        more = {word for word in given if re.fullmatch(r".*(pooled|mask|embeds_).*", word)}
        more = {word for word in more if "prompt" in word or "attention_mask" in word}
        alone = not more and {"prompt_embeds", "negative_prompt_embeds", "num_images_per_prompt"} <= given
        assert alone or not family.embeddings, cls


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_that_tell_the_unet_a_score(name: str) -> None:
    family = FAMILIES[name]
    told = [
        task
        for task, cls in family.classes.items()
        if "self.config.requires_aesthetics_score" in ast.unparse(written(cls).node)
    ]
    assert list(family.scores) == told
