"""How much of a prompt is read: the right length for each pipeline, tokens counted as transformers counts them."""

from __future__ import annotations

import inspect
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
from transformers import CLIPTokenizer

from diffopt.config.resolve import compose_requests
from diffopt.models.classes import PIPELINES
from diffopt.models.prompts import _counted
from diffopt.models.resolve import packaged_architecture
from diffopt.recipe.options import option_names

Cli = Callable[..., tuple[int, str, str]]
TEXTS = ["a small red star", "A  CAT's fur,\n12 dogs!", "\u00e9t\u00e9 \u4e2d\u6587 \U0001f600", "", "lighthouse " * 90]
FIXED = {"IFPipeline", "IFSuperResolutionPipeline"}  # write it into their encode_prompt


def notes(*words: str) -> list[str]:
    (request,) = compose_requests([*words, "hardware=cpu"])
    return [note for note in request.cell.notes if "tokens" in note or "reads" in note]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_length_of_a_class_is_the_default_of_its_call(name: str) -> None:
    cls: Any = getattr(diffusers, name)
    asked = inspect.signature(cls.__call__).parameters.get("max_sequence_length")
    if name in FIXED:
        assert f"max_length = {PIPELINES[name].prompt_tokens}\n" in inspect.getsource(cls.encode_prompt)
    else:
        assert PIPELINES[name].prompt_tokens == (None if asked is None else asked.default)


def test_tokens_are_counted_as_transformers_counts_them(tmp_path: Path) -> None:
    shipped = packaged_architecture("tiny") / "tokenizer"
    told = CLIPTokenizer.from_pretrained(shipped)
    model = json.loads((shipped / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text((shipped / "tokenizer_config.json").read_text())
    for text in TEXTS:
        right = len(told(text).input_ids)
        assert _counted([shipped.parent], "tokenizer", text) == right, text
        assert _counted([tmp_path], "", text) == right, text


def test_a_tokenizer_that_cannot_be_read_leaves_the_words(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert _counted([tmp_path], "", "a cat") is None


def test_the_end_that_is_not_read_is_noted_in_plan_and_with_its_prompt(cli: Cli, tmp_path: Path) -> None:
    long = " ".join(["a small red star on a white background and"] * 20)
    (tmp_path / "p.txt").write_text(f"a cat\n{long}\n")
    code, out, _ = cli("plan", "model=tiny", "workload.prompts_file=p.txt", "workload.batch_size=2", "hardware=cpu")
    assert code == 0
    assert "note: workload: prompt 2 has 182 tokens, more than the 77 that model=tiny reads" in out
    assert "prompt 1 " not in out
    assert notes("model=tiny", f"workload.prompt={long}", "workload.negative_prompt=bad")[0].startswith(
        "workload: the prompt has "
    )
    (note,) = notes("model=tiny", f"workload.negative_prompt={long}")
    assert note.startswith("workload: the negative prompt has ")


@pytest.mark.parametrize("name", option_names("model"))
def test_every_family_notes_more_words_than_it_reads_and_no_fewer(name: str) -> None:
    if name in ("local", "hub"):
        return
    word = "".join(random.Random(0).choices("abcdefgh", k=3))
    (request,) = compose_requests([f"model={name}", "hardware=cpu"])
    model = request.cell.recipe.model
    assert not [note for note in request.cell.notes if note.startswith("workload")]
    if model.embeddings is not None:
        return
    longest = max(
        PIPELINES[str(getattr(model.pipelines, model.task))].prompt_tokens or 0, model.call.max_sequence_length or 0, 77
    )
    read = model.call.max_sequence_length or longest
    assert not notes(f"model={name}", f"workload.prompt={word}")
    found = notes(f"model={name}", f"workload.prompt={' '.join([word] * (read + 1))}")
    assert any(re.search(f"more than the {read} (tokens )?that model={model.name} reads", note) for note in found), (
        found
    )
