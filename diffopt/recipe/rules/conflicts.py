"""What no pipeline can bear at once: pairs of traits, each with its evidence, and hooks inside of whole graphs.

Conflicts join *traits*, never names, so a new step inherits them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffopt.recipe.planned import Problem
from diffopt.recipe.rules.case import Case
from diffopt.schema.step import Trait

HOOK_EVIDENCE = "https://github.com/huggingface/accelerate/issues/3885"


@dataclass(frozen=True)
class Conflict:
    """Two traits that no pipeline can bear at once."""

    first: Trait
    second: Trait
    fact: str
    remedy: str
    evidence: str
    in_one_part: bool = False  # only where both touch the same part of the pipeline; else wherever they are


CONFLICTS = (
    Conflict(
        Trait.MOVES_WEIGHTS,
        Trait.CUDA_GRAPHS,
        "CUDA graphs replay fixed addresses, but the weights move",
        "choose compile=default or memory=resident",
        "https://github.com/huggingface/diffusers/issues/4399",
        in_one_part=True,
    ),
    Conflict(
        Trait.GRAPH_BREAKS,
        Trait.FULLGRAPH,
        "one breaks the graph, the other promises a whole one",
        "set compile.fullgraph=false",
        "https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
        in_one_part=True,
    ),
    Conflict(
        Trait.HAS_NO_LOWERING,
        Trait.GENERATES_CODE,
        "inductor has no lowering for this attention on this device that takes what comes right out of a projection",
        "choose attention=sdpa, or compile=none",
        "https://github.com/pytorch/pytorch/blob/main/torch/_inductor/codegen/cpp_flex_attention_template.py",
        in_one_part=True,
    ),
    Conflict(
        Trait.LIVE_LORA,
        Trait.FUSES_QKV,
        "fusing q, k and v drops a live LoRA on them",
        "choose fuse=none or fuse the LoRA",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/attention.py",
    ),
    Conflict(
        Trait.HOT_SWAPS,
        Trait.COPIES_MODULES,
        "compile_regions puts wrapped modules in the place of those that a LoRA's file names",
        "choose compile=regional",
        "https://github.com/huggingface/accelerate/blob/main/src/accelerate/utils/other.py",
    ),
    Conflict(
        Trait.HOT_SWAPS,
        Trait.EXPORTS,
        "a package keeps the scales of the first LoRA, and a swap changes them",
        "choose compile=regional, or lora=live",
        "https://huggingface.co/docs/peft/main/en/package_reference/hotswap",
    ),
    Conflict(
        Trait.HOT_SWAPS,
        Trait.MOVES_WEIGHTS,
        "diffusers takes off the hooks that move weights to swap a LoRA, and puts on others that it chooses",
        "choose memory=resident",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/loaders/lora_base.py",
    ),
    Conflict(
        Trait.STOCK_PROCESSOR,
        Trait.FUSES_QKV,
        "diffusers' vanilla processor calls to_q, to_k and to_v and so undoes the fusion",
        "choose fuse=none, or an attention backend such as attention=math",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/attention_processor.py",
    ),
    Conflict(
        Trait.CASTS_STORAGE,
        Trait.TRACES,
        "layerwise casting has a hook on each layer, which breaks the graph there, and dynamo gives up after some",
        "choose compile=none, or quant=fp8_weight, whose weights are widened inside the graph",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/hooks/layerwise_casting.py",
        in_one_part=True,
    ),
    Conflict(
        Trait.CACHES_BLOCKS,
        Trait.WHOLE_DENOISER,
        "the cache decides step by step around the blocks, which a graph of the whole denoiser has inside",
        "choose compile=regional, whose graphs are inside the cache",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/hooks/first_block_cache.py",
    ),
    Conflict(
        Trait.CACHES,
        Trait.CUDA_GRAPHS,
        "the cache keeps tensors of earlier steps, and the replay of a CUDA graph overwrites its own",
        "choose compile=regional with compile.mode=default",
        "https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html",
        in_one_part=True,
    ),
    Conflict(
        Trait.CACHES,
        Trait.LEARNS_ORDER,
        "diffusers learns in the first step which group follows which, but the cache then skips some; and to take the "
        "hooks off by which it learnt undoes those that the cache put on after them",
        "choose memory=group_offload",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/hooks/group_offloading.py",
    ),
    Conflict(
        Trait.COUNTS_STEPS,
        Trait.CALLS_TWICE,
        "the cache counts the workload's steps, but this sampler has the denoiser called twice in each but the last",
        "set cache.num_inference_steps=2n-1, where n is workload.steps",
        "https://github.com/huggingface/diffusers/blob/main/src/diffusers/schedulers/"
        "scheduling_flow_match_heun_discrete.py",
    ),
    Conflict(
        Trait.CACHES,
        Trait.EXPORTS,
        "what is exported does the same in every step, and the cache does not",
        "choose compile=regional",
        "https://docs.pytorch.org/docs/stable/export.html",
    ),
    Conflict(
        Trait.MOVES_WEIGHTS,
        Trait.EXPORTS,
        "a package made ahead of time keeps the addresses of the weights, but these move",
        "choose compile=default or memory=resident",
        "https://huggingface.co/blog/zerogpu-aoti",
    ),
    Conflict(
        Trait.CASTS_STORAGE,
        Trait.EXPORTS,
        "layerwise casting replaces the weights in each call, and a package made ahead of time keeps their addresses",
        "choose compile=none",
        "https://huggingface.co/docs/diffusers/main/en/optimization/memory#layerwise-casting",
        in_one_part=True,
    ),
    Conflict(
        Trait.GRAPH_BREAKS,
        Trait.EXPORTS,
        "one breaks the graph, and only a whole one can be exported",
        "choose compile=default with compile.fullgraph=false",
        "https://docs.pytorch.org/docs/stable/export.html",
        in_one_part=True,
    ),
    Conflict(
        Trait.MOVES_WEIGHTS,
        Trait.COPIES_MODULES,
        "accelerate's compile_regions compiles nothing of a module that has an offload hook, and says nothing",
        "choose compile=regional or memory=resident",
        "https://github.com/huggingface/accelerate/issues/4253",
    ),
    Conflict(
        Trait.PACKS_ON_DEVICE,
        Trait.MOVES_WEIGHTS,
        "int4 weights are packed by a kernel of the GPU, but the weights are on the host when they are quantized",
        "choose quant=int8_weight or memory=resident",
        "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/native_functions.yaml",
    ),
    Conflict(
        Trait.PINS_IN_PASSING,
        Trait.QUANTIZES,
        "diffusers keeps no copy of quantized weights that it could pin, and fails at the first call",
        "set memory.low_cpu_mem_usage=false",
        "https://github.com/huggingface/diffusers/issues/14433",
    ),
)


def rule_on_hooks_in_graphs(case: Case) -> Iterator[Problem]:
    """Hooks around a component are inside of its graph where the whole component is compiled, not where blocks are."""
    step = case.cell.recipe.compile
    entered = Trait.WHOLE_DENOISER in step.traits or case.compiled - {"denoiser"}
    if entered and Trait.FULLGRAPH in step.traits:
        for key in case.holders(Trait.HOOKS_COMPONENTS):
            fact = "the hooks that move a component break its graph, and a whole one is promised"
            remedy = "choose compile=regional, or set compile.fullgraph=false for one graph inside of the hooks"
            yield Problem(fact, (key, case.key("compile")), remedy, HOOK_EVIDENCE)
