"""Conflicts join traits, requirements meet hardware, and every problem of a cell is listed at once."""

from __future__ import annotations

import pytest
from support.tiny import tiny

from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.recipe import rules
from diffopt.recipe.plan import Plan, make_plan
from diffopt.recipe.recipe import STEP_GROUPS
from diffopt.schema.step import Order, Trait, registered_step_kinds


def plan(*overrides: str) -> Plan:
    (request,) = compose_requests(list(overrides))
    return make_plan(request.cell)


def keys(*overrides: str) -> list[tuple[str, ...]]:
    return [problem.keys for problem in plan(*overrides).problems]


def test_all_problems_of_a_cell_are_listed_at_once() -> None:
    found = plan("model=sd15", "hardware=t4", "precision=bf16", "quant=fp8_dynamic", "compile=max_autotune",
                 "attention=vanilla", "fuse=qkv")  # fmt: skip
    assert found.status == "refused"
    assert {problem.keys for problem in found.problems} >= {
        ("attention=vanilla", "fuse=qkv"),
        ("quant=fp8_dynamic", "hardware=t4"),
        ("precision=bf16", "compile=max_autotune", "hardware=t4"),
    }
    assert all(problem.remedy and problem.fact for problem in found.problems)


@pytest.mark.parametrize("gpu", ["v100", "t4"])
@pytest.mark.parametrize("compile", ["default", "max_autotune", "regional", "reduce_overhead"])
def test_bf16_compiled_needs_ampere(gpu: str, compile: str) -> None:
    words = ("model=sd15", f"hardware={gpu}", f"compile={compile}")
    assert keys(*words, "precision=bf16") == [("precision=bf16", f"compile={compile}", f"hardware={gpu}")]
    assert keys(*words, "precision=fp16") == []
    assert keys("model=sd15", "hardware=a100", "precision=bf16", f"compile={compile}") == []


@pytest.mark.parametrize("gpu", ["v100", "t4"])
def test_bf16_is_captured_where_no_code_is_generated(gpu: str) -> None:
    assert keys("model=sd15", f"hardware={gpu}", "compile=default", "compile.backend=eager", "precision=bf16") == []


@pytest.mark.parametrize("attention", ["efficient", "xformers"])
def test_kernels_that_take_bf16_from_ampere_on(attention: str) -> None:
    words = ("model=sd15", f"attention={attention}")
    assert keys(*words, "hardware=t4", "precision=bf16") == [
        (f"attention={attention}", "hardware=t4", "precision=bf16")
    ]
    assert keys(*words, "hardware=t4", "precision=fp16") == []
    assert keys(*words, "hardware=a100", "precision=bf16") == []


def test_sage_breaks_graphs_and_has_no_head_of_160() -> None:
    words = ("attention=sage", "hardware=rtx4090", "precision=fp16", "compile=default")
    assert keys("model=sdxl", *words) == [("attention=sage", "compile=default")]
    assert keys("model=sdxl", *words, "compile.fullgraph=false") == []
    assert ("attention=sage", "model=sd15") in keys("model=sd15", *words)


def test_a_half_vae_that_overflows_is_refused() -> None:
    words = ("hardware=a100", "precision=bf16", "precision.vae=float16")
    assert keys("model=sdxl", *words) == [("precision=bf16", "model=sdxl")]
    assert keys("model=sd15", *words) == []


def test_bf16_eager_below_ampere_is_noted_not_refused() -> None:
    found = plan("model=sd15", "hardware=t4", "precision=bf16")
    assert found.status == "ok"
    assert any("emulates bfloat16" in note for note in found.notes)


@pytest.mark.parametrize(("gpu", "works"), [("a100", False), ("rtx3090", False), ("rtx4090", True), ("h100", True)])
def test_fp8_needs_compute_capability_8_9(gpu: str, works: bool) -> None:
    assert (plan("model=sd15", f"hardware={gpu}", "precision=bf16", "quant=fp8_dynamic").status == "ok") is works


def test_fp8_weights_below_ada_work_eagerly_but_not_compiled() -> None:
    words = ("model=sd15", "hardware=a100", "precision=bf16", "quant=fp8_weight")
    assert keys(*words) == []
    assert keys(*words, "compile=default") == [("quant=fp8_weight", "compile=default", "hardware=a100")]
    assert keys("model=sd15", "hardware=h100", "precision=bf16", "quant=fp8_weight", "compile=default") == []


def test_float8_that_is_not_compiled_works_anywhere() -> None:
    words = ("model=sd15", "hardware=t4", "precision=fp16", "quant=fp8_weight", "quant.components=[text_encoders]")
    assert keys(*words, "compile=default") == []
    both = keys(*words, "compile=default", "compile.components=[denoiser,text_encoders]")
    assert both == [("quant=fp8_weight", "compile=default", "hardware=t4")]


TRITON, OTHER = "Triton has no bfloat16, the dtype of {}, below", "works in {} only, the pipeline computes {} in {}"
VAE = "[denoiser,vae]"


@pytest.mark.parametrize(
    ("words", "fact", "remedy"),
    [
        (
            "model=sana_1600m hardware=t4 precision=fp16 compile=default compile.components=[denoiser,text_encoders]",
            TRITON.format("text_encoders"),
            "leave text_encoders out of compile.components, or choose compile=none",
        ),
        (
            "model=pixart_sigma hardware=t4 precision=fp16 precision.vae=bfloat16 compile=default "
            "compile.components=[denoiser,vae_decode]",
            TRITON.format("vae"),
            "leave vae_decode out of compile.components, or choose compile=none",
        ),
        (
            "model=sdxl hardware=h100 precision=fp16 attention=cudnn attention.components=[vae]",
            OTHER.format("bfloat16 or float16", "vae", "float32"),
            "choose a precision that computes vae in bfloat16 or float16",
        ),
        (
            f"model=sd15 hardware=h100 precision=bf16 precision.vae=float32 quant=int4_weight quant.components={VAE}",
            OTHER.format("bfloat16", "vae", "float32"),
            "leave vae out of quant.components, or choose a precision that computes vae in bfloat16",
        ),
        (
            "model=sd15 hardware=h100 precision=bf16 precision.vae=float16 quant=fp8_dynamic_row "
            f"quant.components={VAE}",
            OTHER.format("bfloat16", "vae", "float16"),
            "leave vae out of quant.components, or choose a precision that computes vae in bfloat16",
        ),
        (
            "model=sd15 hardware=t4 precision=fp16 precision.vae=bfloat16 attention=efficient "
            "attention.components=[vae]",
            "takes bfloat16, the dtype of vae, from",
            "choose another attention",
        ),
    ],
)
def test_a_part_with_a_dtype_of_its_own_is_refused_for_it(words: str, fact: str, remedy: str) -> None:
    (problem,) = plan(*words.split()).problems
    assert problem.fact.startswith(fact)
    assert problem.remedy == remedy


@pytest.mark.parametrize(
    "words",
    [
        "model=sd15 hardware=t4 precision=bf16 precision.vae=float32 compile=default compile.components=[vae_decode]",
        "model=sd15 hardware=h100 precision=fp32 precision.vae=float16 attention=cudnn attention.components=[vae]",
        "model=sana_1600m hardware=t4 precision=fp16 compile=default",
        "model=sdxl hardware=h100 precision=fp16 attention=cudnn",
    ],
)
def test_the_dtype_of_parts_that_a_step_leaves_alone_does_not_count(words: str) -> None:
    assert keys(*words.split()) == []


def test_text_encoders_in_emulated_bf16_are_noted() -> None:
    notes = plan("model=sana_1600m", "hardware=t4", "precision=fp16").notes
    assert "precision=fp16: t4 emulates bfloat16, the dtype of text_encoders" in notes
    assert not any("emulates" in note for note in plan("model=sd15", "hardware=t4", "precision=fp16").notes)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("model=flux_dev precision=bf16", True),
        ("model=flux_dev precision=fp16", True),  # its text encoders are in bfloat16
        ("model=sd15 precision=bf16", True),
        ("model=deepfloyd_if precision=bf16", True),
        ("model=deepfloyd_if precision=bf16 precision.vae=float32", False),  # of the last stage
        ("model=sdxl precision=fp16", False),
        ("model=sd15 precision=fp32", False),
        ("model=sd15 precision=bf16 precision.vae=float32", False),
        ("model=wan21_t2v_1_3b precision=bf16 precision.vae=bfloat16", False),  # keeps layers in float32
        ("model=sd35_medium precision=fp16", False),  # as T5 does in float16
    ],
)
def test_tf32_without_float32_is_refused(words: str, refused: bool) -> None:
    found = plan(*words.split(), "precision.tf32=true", "hardware=h100").problems
    assert ["precision.tf32=true rounds nothing" in problem.fact for problem in found] == [True] * refused


@pytest.mark.parametrize("quant", ["int4_weight", "fp8_dynamic"])
def test_no_cpu_path(quant: str) -> None:
    assert keys(f"quant={quant}", "precision=bf16", "hardware=cpu") == [(f"quant={quant}", "hardware=cpu")]


def test_cuda_graphs_are_not_claimed_on_the_cpu() -> None:
    on_cpu, on_gpu = plan("compile=reduce_overhead", "hardware=cpu"), plan("compile=reduce_overhead", "hardware=a100")
    step = on_cpu.cell.recipe.compile
    assert Trait.CUDA_GRAPHS in step.traits
    assert Trait.CUDA_GRAPHS not in step.traits_on(on_cpu.cell.recipe.hardware)
    assert any("no CUDA graphs on the CPU" in note for note in on_cpu.notes)
    assert not any("CUDA graphs" in note for note in on_gpu.notes)


@pytest.mark.parametrize("compile", ["regional", "regions"])
def test_parts_with_cuda_graphs_are_planned_but_with_what_keeps_or_moves_tensors(compile: str) -> None:
    asked = (*FLUX, f"compile={compile}", "compile.mode=reduce-overhead")
    assert plan(*asked).problems == ()
    for words in (("cache=first_block",), ("memory=group_offload", "memory.components=[denoiser]")):
        (problem, *_) = [p for p in plan(*asked, *words).problems if "CUDA graph" in p.fact]
        assert problem.keys == (words[0], f"compile={compile}")
    assert "compile.mode=default" in plan(*asked, "cache=first_block").problems[0].remedy
    on_cpu = plan(*tiny("flux_dev"), "hardware=cpu", *asked[-2:])
    assert any("no CUDA graphs on the CPU" in note for note in on_cpu.notes)
    assert keys(*tiny("flux_dev"), "hardware=cpu", *asked[-2:], "cache=first_block") == []


DECODER = ("compile.components=[vae_decode]",)  # beside a denoiser that runs eagerly
FLUX = ("model=flux_dev", "hardware=h100", "precision=bf16")


@pytest.mark.parametrize(
    ("compile", "words", "key"),
    [
        ("reduce_overhead", ("cache=first_block",), "cache=first_block"),
        ("reduce_overhead", ("cache=pab",), "cache=pab"),
        ("default", ("cache=pab",), "cache=pab"),
        ("default", ("attention=sage",), "attention=sage"),
        ("default", ("quant=fp8_storage",), "quant=fp8_storage"),
        ("reduce_overhead", ("memory=group_offload", "memory.components=[denoiser]"), "memory=group_offload"),
    ],
)
def test_what_is_not_compiled_bears_what_compiled_parts_do_not(compile: str, words: tuple[str, ...], key: str) -> None:
    asked = (*FLUX, f"compile={compile}", *words)
    assert (key, f"compile={compile}") in keys(*asked)
    assert (key, f"compile={compile}") in keys(*asked, "compile.components=[denoiser,vae_decode]")
    assert keys(*asked, *DECODER) == []


def test_a_part_that_breaks_its_graph_is_refused_where_it_is_compiled() -> None:
    asked = (*FLUX, "quant=fp8_storage", "compile=default", *DECODER)
    assert keys(*asked, "quant.components=[denoiser,vae]") == [("quant=fp8_storage", "compile=default")]
    whole = keys(*FLUX, "memory=sequential_offload", "compile=default", *DECODER)  # moves every part
    assert ("memory=sequential_offload", "compile=default") in whole


@pytest.mark.parametrize("cache", ["first_block", "pab"])
def test_max_autotune_compiles_the_denoiser_too(cache: str) -> None:
    assert (f"cache={cache}", "compile=max_autotune") in keys(*FLUX, "compile=max_autotune", f"cache={cache}")


@pytest.mark.parametrize(
    ("words", "eager"),
    [
        (("compile=none",), "without compile,"),
        (("compile=default", "compile.backend=eager"), "without compile,"),
        (("compile=default", *DECODER), "without compile of denoiser,"),
        (("compile=default", "quant.components=[denoiser,text_encoders,vae]"), "compile of text_encoders and vae,"),
        (("compile=default",), None),
        (("compile=max_autotune", "quant.components=[denoiser,vae]"), None),
    ],
)
def test_quantizing_what_runs_eagerly_is_noted(words: tuple[str, ...], eager: str | None) -> None:
    found = [note for note in plan(*FLUX, "quant=int8_dynamic", *words).notes if "quantizing mostly costs" in note]
    assert len(found) == (eager is not None)
    assert eager is None or eager in found[0]


def test_layers_parted_by_hooks_are_noted_where_they_are_compiled() -> None:
    asked = (*FLUX, "memory=group_offload_leaf", "memory.components=[denoiser]", "compile=default")
    assert any("hooks part every layer" in note for note in plan(*asked).notes)
    assert not any("hooks part every layer" in note for note in plan(*asked, *DECODER).notes)


@pytest.mark.parametrize("model", ["sd15", "flux_dev"])
def test_flex_attention_is_not_compiled_on_the_cpu(model: str) -> None:
    asked = (*tiny(model), "attention=flex", "precision=bf16")
    for compile in ("default", "regional", "aot"):
        assert keys(*asked, "hardware=cpu", f"compile={compile}") == [("attention=flex", f"compile={compile}")]
        assert keys(*asked, "hardware=h100", f"compile={compile}") == []
    assert keys(*asked, "hardware=cpu", "compile=default", "compile.backend=eager") == []
    assert keys(*asked, "hardware=cpu", "compile=default", *DECODER) == []


def test_every_conflict_is_of_two_known_traits_and_says_why() -> None:
    pairs = [frozenset({conflict.first, conflict.second}) for conflict in rules.CONFLICTS]
    assert len(pairs) == len(set(pairs)), "each conflict once"
    for conflict in rules.CONFLICTS:
        assert conflict.evidence.startswith("https://")
        assert conflict.fact
        assert conflict.remedy


def test_steps_are_ordered_by_order_alone() -> None:
    found = plan("model=sd15", "hardware=h100", "recipe=accelerate_inference")
    orders = [step.order for _, step in found.steps]
    assert orders == sorted(orders)
    assert [group for group, _ in found.steps] == [
        "precision", "memory", "fuse", "quant", "attention", "layout", "scheduler", "compile",
    ]  # fmt: skip


def test_every_registered_step_has_an_order_and_a_group() -> None:
    for group in STEP_GROUPS:
        for kind, step in registered_step_kinds(group).items():
            assert isinstance(step.order, Order), (group, kind)
            assert step.__doc__, (group, kind)


def test_unpinned_weights_are_noted() -> None:
    assert any("not pinned" in note for note in plan("model=sd15", "hardware=a100").notes)
    assert not any("not pinned" in note for note in plan("model=tiny").notes)


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (("model=flux_schnell", "workload.guidance=7.5"), "workload.guidance=7.5: model=flux_schnell is distilled"),
        (("model=flux2_klein", "workload.guidance=4"), "workload.guidance=4: model=flux2_klein is distilled"),
        (("model=flux_schnell",), None),
        (("model=flux_dev", "workload.guidance=7.5"), None),
        (("model=sd15", "workload.guidance=3"), None),
    ],
)
def test_a_scale_without_effect_is_noted(words: tuple[str, ...], noted: str | None) -> None:
    found = [note for note in plan(*words, "hardware=h100").notes if "distilled" in note]
    assert [note[: len(noted or "")] for note in found] == ([noted] if noted else [])


@pytest.mark.parametrize(("gpu", "noted"), [("t4", True), ("l4", True), ("v100", False), ("a100", False)])
def test_small_gpus_do_not_search_matrix_products(gpu: str, noted: bool) -> None:
    words = ("model=sd15", "precision=fp16", f"hardware={gpu}")
    notes = plan(*words, "compile=max_autotune").notes
    assert any("does not search kernels for matrix products" in note for note in notes) is noted
    assert not any("matrix products" in note for note in plan(*words, "compile=default").notes)


def test_int4_is_packed_where_the_weights_are() -> None:
    words = ("model=sdxl", "hardware=a100", "precision=bf16", "quant=int4_weight", "memory=model_offload")
    (request,) = compose_requests(list(words))
    reasons = make_plan(request.cell).reasons
    assert any("packed by a kernel of the GPU" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("model=z_image", "model.weights=tiny", "workload.negative_prompt=ugly"), "no negative prompt is read"),
        (
            ("model=sd15", "model.weights=tiny", "workload.negative_prompt=ugly", "workload.guidance=1.0"),
            "no negative prompt is read",
        ),
        (("model=deepfloyd_if", "model.weights=tiny", "model.cascade=[sd15]"), "sd15 is for txt2img"),
        (("model=sd15", "model.weights=tiny", "workload=txt2video"), "has no pipeline for txt2video"),
        (
            ("model=flux_dev", "model.weights=tiny", "workload=img2img", "workload.steps=2"),
            "begins at the first one, which is pure noise",
        ),
    ],
)
def test_what_would_change_nothing_is_refused(words: tuple[str, ...], reason: str) -> None:
    (request,) = compose_requests([*words, "hardware=cpu"])
    (told,) = make_plan(request.cell).reasons
    assert reason in told


def test_activations_count_by_the_size_that_they_were_counted_with() -> None:
    """Not by the model's customary one, which a fine-tune may have changed, and which is in no id."""
    same = ("model=sd15", "hardware=t4", "precision=fp16", "workload.height=512", "workload.width=512")
    (plain,), (small,) = compose_requests(list(same)), compose_requests([*same, "model.height=64", "model.width=64"])
    assert plain.cell.id == small.cell.id
    assert make_plan(small.cell).reasons == make_plan(plain.cell).reasons == []


@pytest.mark.parametrize("cascade", ["5", "sd_x4_upscaler", "{a: b}"])
def test_a_cascade_is_a_list_of_names(cascade: str) -> None:
    with pytest.raises(UsageError, match="list of names of model options"):
        compose_requests(["model=deepfloyd_if", "model.weights=tiny", f"model.cascade={cascade}", "hardware=cpu"])


def test_guidance_that_has_no_negative_prompt_to_guide_away_from_is_noted() -> None:
    def noted(*words: str) -> list[str]:
        return [
            note
            for note in plan("model=qwen_image", "model.weights=tiny", "hardware=cpu", *words).notes
            if "negative" in note
        ]

    (note,) = noted()
    assert note.startswith("workload.guidance=4: model=qwen_image guides only away from a negative prompt")
    assert not noted('workload.negative_prompt=" "')  # the remedy, as the shell hands it on
    assert not noted("workload.guidance=1")


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (("precision=fp32",), True),
        (("precision=fp32", "model.variant=null"), False),
        (("precision=fp32", "model.weights=random"), False),
        (("precision=fp16",), False),
        (("precision=bf16",), False),
    ],
)
def test_files_in_half_precision_are_no_float32(words: tuple[str, ...], noted: bool) -> None:
    found = [note for note in plan("model=sd15", "hardware=a100", *words).notes if "are rounded to float16" in note]
    assert bool(found) is noted
    assert not noted or "model.variant=null takes those that are not" in found[0]
