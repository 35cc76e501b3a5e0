"""Pairs of options: some are run here, all of them by scripts/pairs."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from support.places import REPO

from scripts.maintain import pairs
from scripts.maintain.pairs import FAMILIES, Pair, options, try_pair
from scripts.maintain.pairs_table import markdown, read, to_json

SAMPLE = random.Random(4).sample([(f, a, b) for f in FAMILIES for a, b in pairs.pairs(options())], 40)
KEPT = {(p.family, p.first, p.second): p for p in read(REPO / "docs" / "results" / "pairs.json")}
WORDS = [f"{family}: {'='.join(a)} x {'='.join(b)}" for family, a, b in SAMPLE]


def option(word: str) -> tuple[str, str]:
    group, _, name = word.partition("=")
    return group, name


@pytest.mark.parametrize(
    ("family", "first", "second", "status", "said"),
    [
        ("UNet", "lora=fused", "fuse=qkv", "ok", "lora: 60 layers"),
        ("UNet", "lora=live", "fuse=qkv", "refused", "drops a live LoRA"),
        ("DiT", "vae=tiling", "cache=first_block", "ok", "skipped"),
        ("DiT", "memory=model_offload", "quant=fp8_dynamic_row", "refused", "cuda only"),
    ],
)
def test_a_pair_runs_or_says_why_not(family: str, first: str, second: str, status: str, said: str) -> None:
    found = try_pair(family, option(first), option(second))
    assert (found.status, said in found.reason) == (status, True), found


@pytest.mark.parametrize(("broken", "said"), [("build_pipelines", "no luck"), ("make_plan", "no luck")])
def test_what_breaks_is_a_failure_in_the_table(broken: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(
        f"{'diffopt.pipeline.build' if broken == 'build_pipelines' else 'scripts.maintain.pairs'}.{broken}", breaks
    )
    monkeypatch.setattr(pairs, "_OUTCOMES", {})
    found = try_pair("UNet", ("precision", "bf16"), ("fuse", "qkv"))
    assert (found.status, found.reason) == ("error", f"RuntimeError: {said}")
    assert "| `precision=bf16` | 0 | `fuse=qkv` ✗1 |" in markdown([found])


def test_what_ran_is_not_run_again_unless_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.maintain.pairs._outcome", lambda plan: ("ok", "ran again"))
    monkeypatch.setattr(pairs, "_OUTCOMES", {})
    words = "UNet", ("precision", "bf16"), ("fuse", "qkv")
    ran = Pair("UNet", "precision=bf16", "fuse=qkv", "ok", "run", "fine")
    assert try_pair(*words, ran) == ran
    for again in (replace(ran, status="error"), replace(ran, status="refused", ended="plan"), None):
        assert try_pair(*words, again).reason == "ran again"


def test_a_lora_is_made_for_the_model_that_the_cache_needs() -> None:
    found = try_pair("DiT", ("lora", "live"), ("cache", "sea"))
    assert found.status == "ok", found


@pytest.mark.parametrize(
    ("word", "other", "on_gpu"),
    [
        ("quant=int4_weight", "fuse=qkv", ""),
        ("attention=sage_hub", "quant=int8_weight", ""),
        ("attention=flash3", "precision=fp16", ""),
        ("precision=tf32", "attention=cudnn", "works in bfloat16 or float16 only"),
    ],
)
def test_what_needs_a_gpu_is_planned_there_with_what_it_needs(word: str, other: str, on_gpu: str) -> None:
    found = try_pair("DiT", option(word), option(other))
    assert found.ended == "alone"
    assert found.on_gpu is not None
    assert on_gpu in found.on_gpu if on_gpu else found.on_gpu == "", found


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = [
        Pair("UNet", "a=1", "b=2", "ok", "run", "fine"),
        Pair("DiT", "a=1", "b=2", "refused", "alone", "no", "x"),
    ]
    (tmp_path / "pairs.json").write_text(to_json(found))
    assert read(tmp_path / "pairs.json") == found


def test_pairs_that_have_no_row_are_counted() -> None:
    known = [Pair("UNet", "=".join(a), "=".join(b), "ok", "run", "") for a, b in pairs.pairs(options())]
    assert "Not tried" not in markdown(known)
    assert "Not tried yet: 1 pairs, all with" in markdown(known[1:])
    rest = [pair for pair in known if "compile=aot" not in (pair.first, pair.second)]
    assert f"Not tried yet: {len(known) - len(rest)} pairs, all with `compile=aot`." in markdown(rest)


def test_the_kept_table_has_all_pairs_and_no_failure() -> None:
    known = {(f, "=".join(a), "=".join(b)) for f in FAMILIES for a, b in pairs.pairs(options())}
    assert known - set(KEPT) == set(), "scripts/pairs --resume"
    assert set(KEPT) - known == set(), "options that are gone: scripts/pairs --resume"
    assert {pair.status for pair in KEPT.values()} == {"ok", "refused"}


def test_the_page_shows_what_is_kept() -> None:
    assert (REPO / "docs" / "pairs.md").read_text(encoding="utf-8") == markdown(list(KEPT.values()))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "first", "second"), SAMPLE, ids=WORDS)
def test_a_sample_of_all_pairs_runs_or_says_why_not(family: str, first: pairs.Option, second: pairs.Option) -> None:
    found = try_pair(family, first, second)
    assert found.status in ("ok", "refused"), found
    assert found.reason
    key = family, "=".join(first), "=".join(second)
    assert (found.status, found.ended) == (KEPT[key].status, KEPT[key].ended)
