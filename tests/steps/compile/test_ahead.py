"""compile=aot: what goes into a package, when one is loaded, and the proof.

Most tests put a stand-in in the place of inductor. It keeps the exported program as the package, and asks for its
weights by name, as real packages do.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from support.option_steps import step
from support.places import TESTS
from support.tiny_pipelines import picture, pipeline, site
from torch import nn
from torch._dynamo.utils import counters
from torch._functorch._aot_autograd.subclass_parametrization import unwrap_tensor_subclass_parameters

from diffopt.errors import NoEffect, Refusal
from diffopt.recipe.rules import CONFLICTS
from diffopt.schema.step import Order, Trait
from diffopt.steps.compile import packaged_call
from diffopt.steps.compile.fingerprint import compiled_constants, fingerprint_of_compiled_module
from diffopt.steps.compile.packaged_call import PackagedCall, proof_of_compiled_packages


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    torch.set_num_threads(1)
    monkeypatch.setenv("DIFFOPT_CACHE_DIR", str(tmp_path / "cache"))


class Toy(nn.Module):
    """One of each: a matrix, vectors at their initial values, a small one, a scalar, a buffer, and two that are no
    weights (a plain attribute and a literal)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.small = nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("ramp", torch.arange(4.0), persistent=False)
        self.plain = torch.arange(4.0) + 1
        self.factor = 2.0
        self.requires_grad_(False)

    def forward(self, x, t, *, flag=False):
        y = self.small(self.norm(self.linear(x))) * self.scale * self.factor + self.ramp + self.plain
        y = y * torch.cos(t * torch.tensor([1.0, 2.0, 3.0, 4.0]))
        return (-y if flag else y,)


INPUTS = (torch.linspace(-1, 1, 3 * 16).reshape(3, 16), torch.tensor(0.5))


class Loaded:
    """A package of the stand-in's."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.module = program.module()
        self.given: dict[str, torch.Tensor] = {}

    def get_constant_fqns(self) -> list[str]:
        return [name for name, _ in (*self.module.named_parameters(), *self.module.named_buffers())]

    def load_constants(self, given, *, check_full_update, user_managed) -> None:
        assert check_full_update
        assert user_managed, "a copy of the weights would be a second one in memory"
        self.given = given

    def __call__(self, *args, **kwargs):
        return torch.func.functional_call(self.module, self.given, args, kwargs)


class Inductor:
    """Stands for inductor: counts its compilations, and keeps what it compiled by what it wrote."""

    def __init__(self) -> None:
        self.programs: list[torch.export.ExportedProgram] = []
        self.settings: dict[str, object] = {}

    def compile(self, program, *, package_path, inductor_configs) -> str:
        Path(package_path).write_text(str(len(self.programs)))
        self.programs.append(program)
        self.settings = inductor_configs
        return package_path

    def load(self, path) -> Loaded:
        return Loaded(self.programs[int(Path(path).read_text())])


@pytest.fixture
def inductor(monkeypatch) -> Inductor:
    stand_in = Inductor()
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", stand_in.compile)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", stand_in.load)
    return stand_in


def called(module: nn.Module, folder: Path, identity: object = "a recipe") -> PackagedCall:
    call = PackagedCall(module, folder, identity=identity, settings={})
    module._compiled_call_impl = call
    return call


def test_the_first_process_compiles_and_the_next_one_loads(inductor, tmp_path):
    for compiled in (1, 0):
        toy = Toy()
        expected = toy.forward(*INPUTS)[0]
        call = called(toy, tmp_path)
        for _ in range(2):
            torch.testing.assert_close(toy(*INPUTS)[0], expected)
        effect = proof_of_compiled_packages({"toy": call})
        assert (effect.numbers["packages_compiled"], effect.numbers["packages_loaded"]) == (compiled, 1 - compiled)
        assert effect.numbers["toy_calls"] == 2
        assert effect.summary.startswith("1 package compiled and saved" if compiled else "1 package loaded")
    assert len(inductor.programs) == 1
    assert inductor.settings["aot_inductor.package_constants_in_so"] is False


def test_a_package_that_others_may_have_written_is_not_loaded(inductor, tmp_path, monkeypatch):
    called(Toy(), tmp_path).module(*INPUTS)
    (package,) = tmp_path.iterdir()
    assert package.stat().st_mode & 0o777 == 0o700
    package.chmod(0o777)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: pytest.fail("its code was loaded"))
    with pytest.raises(Refusal, match=rf"{package} can be written to by others.*DIFFOPT_CACHE_DIR=/a/folder"):
        called(Toy(), tmp_path).module(*INPUTS)


def test_a_package_serves_other_weights(inductor, tmp_path):
    called(Toy(), tmp_path).module(*INPUTS)
    other = Toy(seed=1)
    other.scale.fill_(3.0)
    expected = other.forward(*INPUTS)[0]
    called(other, tmp_path)
    torch.testing.assert_close(other(*INPUTS)[0], expected)
    other.scale.fill_(6.0)
    torch.testing.assert_close(other(*INPUTS)[0], other.forward(*INPUTS)[0], msg="weights are not copied")
    assert len(inductor.programs) == 1


def other_setting(toy: Toy) -> None:
    toy.factor = 3.0


def other_type(toy: Toy) -> None:
    toy.ramp = toy.ramp.double()


def other_strides(toy: Toy) -> None:
    toy.linear.weight = nn.Parameter(toy.linear.weight.t().contiguous().t(), requires_grad=False)


def other_constant(toy: Toy) -> None:
    toy.plain = torch.arange(4.0) + 2


def other_class(toy: Toy) -> None:
    toy.norm = nn.RMSNorm(16)


@pytest.mark.parametrize("change", [other_setting, other_type, other_strides, other_constant, other_class])
def test_another_module_gets_another_package(inductor, tmp_path, change):
    called(Toy(), tmp_path).module(*INPUTS)
    changed = Toy()
    change(changed)
    assert fingerprint_of_compiled_module(changed) != fingerprint_of_compiled_module(Toy())
    called(changed, tmp_path).module(*INPUTS)
    assert len(inductor.programs) == 2


def test_another_attention_backend_gets_another_package():
    """diffusers keeps it in a private attribute of the processor."""
    pipe, other = pipeline(), pipeline()
    assert fingerprint_of_compiled_module(pipe.unet) == fingerprint_of_compiled_module(other.unet)
    step("attention", "math").apply(other, site())
    third = pipeline()
    step("attention", "flash").apply(third, site())
    assert len({fingerprint_of_compiled_module(one.unet) for one in (pipe, other, third)}) == 3


def test_another_recipe_gets_another_package(inductor, tmp_path):
    for identity in ("a recipe", "another", "a recipe"):
        called(Toy(), tmp_path, identity).module(*INPUTS)
    assert len(inductor.programs) == 2


def test_a_package_does_not_outlive_the_code_of_the_module(tmp_path, monkeypatch):
    before = fingerprint_of_compiled_module(Toy())
    changed = tmp_path / "code.py"
    changed.write_text("other")
    monkeypatch.setattr(inspect, "getsourcefile", lambda cls: str(changed))
    assert fingerprint_of_compiled_module(Toy()) != before


x, t = INPUTS
KINDS = [
    ((x[:2], t), {}),
    ((x.t().contiguous().t(), t), {}),
    ((x, t.double()), {}),
    ((x, t), {"flag": False}),
    ((x, t), {"flag": True}),
]


def test_each_kind_of_inputs_has_a_package(inductor, tmp_path):
    toy = Toy()
    call = called(toy, tmp_path)
    for args, kwargs in [(INPUTS, {}), *KINDS, *KINDS]:
        torch.testing.assert_close(toy(*args, **kwargs)[0], toy.forward(*args, **kwargs)[0])
    assert len(call.packages) == len(inductor.programs) == 1 + len(KINDS)


class Remembering(Toy):
    """Computes a table in its first call, as transformers do with their rotary embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table = None

    def forward(self, x, t, *, flag=False):
        if self.table is None:
            self.table = torch.arange(4.0) + 7
        return (super().forward(x, t, flag=flag)[0] * self.table,)


def test_what_a_module_computes_once_is_kept_in_the_package(inductor, tmp_path):
    expected = [Remembering().forward(x[:rows], t)[0] for rows in (2, 3)]
    for _ in range(2):
        toy = Remembering()
        called(toy, tmp_path)
        for rows, wanted in zip((2, 3), expected, strict=True):
            torch.testing.assert_close(toy(x[:rows], t)[0], wanted)
    assert len(inductor.programs) == 2


def test_inputs_that_always_change_are_refused(inductor, tmp_path, monkeypatch):
    monkeypatch.setattr(packaged_call, "MOST_PACKAGES", 2)
    toy = Toy()
    called(toy, tmp_path)
    toy(x[:1], t)
    toy(x[:2], t)
    with pytest.raises(Refusal, match="more than 2 kinds of inputs"):
        toy(x[:3], t)


def test_an_input_without_a_lasting_name_is_refused(inductor, tmp_path):
    toy = Toy()
    called(toy, tmp_path)
    with pytest.raises(Refusal, match="an input of type object"):
        toy(x, t, flag=object())


def test_compiling_in_the_timed_part_is_an_error(inductor, tmp_path):
    toy = Toy()
    called(toy, tmp_path)
    toy(*INPUTS)
    with torch.compiler.set_stance("fail_on_recompile"):
        toy(*INPUTS)
        with pytest.raises(RuntimeError, match="compiled in the timed part"):
            toy(x[:1], t)


def test_what_cannot_be_compiled_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    toy = Toy()
    call = called(toy, tmp_path)
    with pytest.raises(RuntimeError, match="no compiler"):
        toy(*INPUTS)
    assert list(tmp_path.rglob("*.pt*")) == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []
    assert toy._compiled_call_impl is call


def test_the_package_of_a_faster_process_is_kept(inductor, tmp_path, monkeypatch):
    compile_as_ever = inductor.compile

    def compile_late(program, *, package_path, inductor_configs):
        partial = Path(package_path).parent
        folder = partial.parents[1] / partial.name
        if not folder.exists():  # the other process is done in the meantime
            monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_as_ever)
            called(Toy(), tmp_path).module(*INPUTS)
        return compile_as_ever(program, package_path=package_path, inductor_configs=inductor_configs)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_late)
    toy = Toy()
    called(toy, tmp_path)
    torch.testing.assert_close(toy(*INPUTS)[0], toy.forward(*INPUTS)[0])
    assert len(inductor.programs) == 2
    assert len([path for path in tmp_path.iterdir() if path.name != "cache"]) == 1


def test_a_package_that_asks_for_unknown_weights_is_refused(inductor, tmp_path, monkeypatch):
    monkeypatch.setattr(Loaded, "get_constant_fqns", lambda self: ["linear.weight", "elsewhere"])
    toy = Toy()
    called(toy, tmp_path)
    with pytest.raises(Refusal, match="Toy has no elsewhere"):
        toy(*INPUTS)


def test_a_module_that_left_its_package_is_found_out(inductor, tmp_path):
    toy = Toy()
    call = called(toy, tmp_path)
    with pytest.raises(NoEffect, match="toy was never called through its package"):
        proof_of_compiled_packages({"toy": call})
    with pytest.raises(NoEffect, match="toy is not called through a package"):
        proof_of_compiled_packages({"toy": None})
    toy(*INPUTS)
    proof_of_compiled_packages({"toy": call})
    toy.linear.weight = nn.Parameter(toy.linear.weight.clone(), requires_grad=False)
    with pytest.raises(NoEffect, match="1 weights of toy were moved or replaced"):
        proof_of_compiled_packages({"toy": call})


@pytest.mark.parametrize("option", ["int8_weight", "int8_dynamic", "fp8_weight"])
def test_quantized_weights_have_the_names_that_export_gives_their_parts(option):
    pipe = pipeline()
    step("quant", option).apply(pipe, site())
    block = pipe.unet.mid_block
    taken_apart = dict(unwrap_tensor_subclass_parameters(copy.deepcopy(block)).named_parameters())
    found = compiled_constants(block)
    assert found.keys() == taken_apart.keys()
    assert any("parametrizations" in name for name in found)
    for name, tensor in found.items():
        assert torch.equal(tensor, taken_apart[name]), name


def test_a_pipeline_goes_through_its_package(inductor):
    reference = picture(pipeline())
    counters["aot_packages"].clear()
    for told in ("1 package compiled and saved", "1 package loaded"):
        pipe, chosen = pipeline(), step("compile", "aot")
        chosen.apply(pipe, site())
        assert np.abs(picture(pipe) - reference).max() <= 1e-4
        effect = chosen.verify(pipe, site())
        assert effect.summary.startswith(told)
        assert effect.numbers["unet_calls"] == 3, "PNDM calls once more than its steps"
    assert counters["aot_packages"] == {"compiled": 1, "loaded": 1}


def test_the_scale_of_a_live_lora_is_a_part_of_the_package(inductor, tmp_path):
    for scale in (1.0, 3.0, 1.0):
        torch.manual_seed(0)
        toy = inject_adapter_in_model(LoraConfig(r=2, target_modules=["linear"], init_lora_weights="gaussian"), Toy())
        torch.nn.init.ones_(toy.linear.lora_B["default"].weight)
        toy.linear.set_scale("default", scale)
        expected = toy.forward(*INPUTS)[0]
        called(toy, tmp_path)
        torch.testing.assert_close(toy(*INPUTS)[0], expected)
    assert len(inductor.programs) == 2


def test_a_pipeline_without_packages_is_found_out():
    pipe = pipeline()
    with pytest.raises(NoEffect, match="unet is not called through a package"):
        step("compile", "aot").verify(pipe, site())


def test_the_step_says_what_it_cannot_bear():
    chosen = step("compile", "aot")
    assert chosen.order is Order.COMPILE
    assert chosen.traits == {Trait.TRACES, Trait.GENERATES_CODE, Trait.EXPORTS}
    assert step("compile", "aot", mode="max-autotune-no-cudagraphs").traits == chosen.traits | {Trait.SEARCHES_GEMM}
    against = {conflict.first for conflict in CONFLICTS if conflict.second is Trait.EXPORTS}
    assert against >= {Trait.MOVES_WEIGHTS, Trait.CASTS_STORAGE, Trait.GRAPH_BREAKS, Trait.CACHES}


SECOND_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
from support.option_steps import step
from support.tiny_pipelines import picture, pipeline, site
import torch._inductor.compile_fx, torch._inductor.codecache

def forbidden(*args, **kwargs):
    raise AssertionError("compiled")

torch.set_num_threads(1)
if sys.argv[2] == "load":
    torch._inductor.compile_fx.compile_fx_inner = forbidden
    torch._inductor.codecache.AotCodeCompiler.compile = forbidden
    torch.export.export = forbidden
pipe, chosen = pipeline(), step("compile", "aot")
expected = picture(pipe)
chosen.apply(pipe, site())
found = picture(pipe)
assert np.abs(found - expected).max() <= 1e-4
print("EFFECT", chosen.verify(pipe, site()).summary)
from torch._dynamo.utils import counters
assert not counters["stats"] and bool(counters["inductor"]) == (sys.argv[2] == "save"), counters
"""


@pytest.mark.slow
def test_a_fresh_process_loads_the_package_and_compiles_nothing():
    told = []
    for way in ("save", "load"):
        done = subprocess.run(
            [sys.executable, "-c", SECOND_PROCESS, str(TESTS), way],
            capture_output=True,
            text=True,
            env=os.environ,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(re.search(r"EFFECT (.*)", done.stdout)[1])
    assert re.fullmatch(r"1 package compiled and saved \(\d+\.\d MB\)", told[0])
    assert re.fullmatch(r"1 package loaded \(\d+\.\d MB\)", told[1])


@pytest.mark.slow
def test_inductor_writes_no_weights_into_a_package(tmp_path):
    """Quantized ones, initial ones and small ones: each stays outside."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    def toy(seed: int) -> Toy:
        made = Toy(seed)
        quantize_(made, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda m, name: name == "linear")
        return made

    for seed, compiled in ((0, 1), (1, 0)):
        made = toy(seed)
        if seed:
            for name, weight in made.named_parameters():
                if name != "linear.weight":
                    weight.normal_()
        expected = made.forward(*INPUTS)[0]
        call = called(made, tmp_path)
        torch.testing.assert_close(made(*INPUTS)[0], expected, atol=1e-4, rtol=1e-4)
        assert proof_of_compiled_packages({"toy": call}).numbers["packages_compiled"] == compiled
