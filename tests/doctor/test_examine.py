"""diffopt doctor: the checks themselves, what it asks of which machine, and what becomes of a crash and a hang."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from support.nvml import fake_pynvml
from support.stand_in_gpu import AS_THEY_ARE, _on_cpu, stand_in_gpu
from torch._dynamo.utils import counters
from torch._inductor import cudagraph_trees
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from diffopt.cli import machines
from diffopt.doctor import builds, checks, examine, worker
from diffopt.doctor.examine import Checker, CheckTask, Finding
from diffopt.machine import nvml, tested
from diffopt.machine.nvml import Gpu

WORKER = """
import json, os, signal, sys, time
fd = int(sys.argv[2])
for number, line in enumerate(sys.stdin):
    task = json.loads(line)
    print("looking at", task["check"], flush=True)
    if task["check"] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task["check"] == "exit":
        sys.exit(3)
    if task["check"] == "hang":
        time.sleep(60)
    words = {"status": task.get("status", "ok"), "seconds": 0.5, "remedy": None}
    os.write(fd, json.dumps({**words, "says": f"answer {number}"}).encode() + b"\\n")
"""


@pytest.fixture
def child(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    with Checker(None, 1.5, worker=(str(tmp_path / "worker.py"),)) as asked:
        yield asked


def ask(child, check, name=None, **arguments):
    return child.ask(CheckTask(name or check, check, arguments))


def test_one_process_answers_until_it_dies(child):
    assert ask(child, "fine").says == "answer 0"
    assert ask(child, "fine") == Finding(check="fine", status="ok", seconds=0.5, says="answer 1")
    died = ask(child, "crash", "attention=flash")
    assert died.status == "fails"
    assert died.says.startswith("the process was killed by SIGSEGV; it printed at last: ")
    assert "attention=flash" in died.remedy
    assert ask(child, "fine").says == "answer 0"


def test_an_exit_is_a_line(child):
    gone = ask(child, "exit")
    assert (gone.status, gone.says) == ("fails", "the process exited with code 3; it printed at last: looking at exit")


def test_a_hang_is_a_line_and_the_next_check_runs(child):
    hung = ask(child, "hang")
    assert hung.status == "fails"
    assert hung.says.startswith("no answer within 1.5 s")
    assert 1.5 <= hung.seconds < 10
    assert ask(child, "fine").status == "ok"


def test_a_failure_without_a_remedy_gets_one(child):
    assert ask(child, "fine", status="fails").remedy


# --- the checks, for real on the CPU


def run_check(check, **arguments):
    return worker.answer_doctor_task({"check": check, "device": "cpu", **arguments})


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        ("torch", {}),
        ("half", {"dtype": "bfloat16"}),
        ("half", {"dtype": "float16"}),
        ("int8 product", {}),
        ("fp8 product", {}),  # slowly, on a CPU
        ("torchao", {"kind": "int8"}),
        *(("attention", {"backend": b, "dtypes": None}) for b in ("native", "_native_flash", "_native_math")),
    ],
)
def test_checks_pass_on_the_cpu(check, arguments):
    answer = run_check(check, **arguments)
    assert answer["status"] == "ok", answer
    assert answer["seconds"] > 0


def test_a_kernel_that_is_not_there_fails_and_nothing_else_takes_its_place():
    answer = run_check("attention", backend="_native_cudnn", dtypes=None)
    assert answer["status"] == "fails"


def test_wrong_numbers_fail(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: torch.zeros(len(a), b.shape[1], dtype=torch.int32))
    assert run_check("int8 product")["status"] == "fails"
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: torch.full((), torch.nan))
    assert run_check("attention", backend="native", dtypes=None)["status"] == "fails"


def test_what_was_not_compiled_fails(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    answer = run_check("compile")
    assert answer["status"] == "fails"
    assert "TORCH_COMPILE_DISABLE" in answer["remedy"]


def have_triton(monkeypatch, **attributes):
    """A Triton that can be imported and does nothing."""
    module = ModuleType("triton")
    module.__spec__ = ModuleSpec("triton", None)
    module.__dict__.update(attributes)
    monkeypatch.setitem(sys.modules, "triton", module)


@pytest.mark.parametrize(
    ("device", "triton", "compiler", "headers", "remedy"),
    [
        ("cpu", False, None, True, "g++"),
        ("cpu", False, "/bin/g++", False, "python3-dev"),
        ("cpu", False, "/bin/g++", True, "compile=none"),
        ("cuda", False, None, False, "pip install 'triton==3.9.1'"),
        ("cuda", True, None, True, "g++"),
        ("cuda", True, "/bin/gcc", False, "python3-dev"),
        ("cuda", True, "/bin/gcc", True, "compile=none"),
    ],
)
def test_what_a_compiler_lacks_is_named(monkeypatch, device, triton, compiler, headers, remedy):
    monkeypatch.setattr(metadata, "requires", lambda name: ["sympy>=1", 'triton==3.9.1; platform_system == "Linux"'])
    monkeypatch.setattr(checks, "_compiler", lambda device: compiler)
    if triton:
        have_triton(monkeypatch)
    else:
        monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(Path, "is_file", lambda path: headers)

    def broken(function, **settings):
        def call(*tensors):
            raise RuntimeError("no code")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with stand_in_gpu():
        answer = run_check("compile", device=device)
    assert answer["status"] == "fails"
    assert "no code" in answer["says"]
    assert remedy in answer["remedy"]


@pytest.mark.parametrize(
    ("named", "command"),
    [
        (["pytorch-triton==3.8.0+git1"], "pip install 'pytorch-triton==3.8.0+git1'"),
        (["sympy"], "pip install 'triton'"),
        (None, "pip install 'triton'"),
    ],
)
def test_the_triton_that_torch_names(monkeypatch, named, command):
    monkeypatch.setattr(metadata, "requires", lambda name: named)
    assert command in checks._install_triton()


def test_a_torch_without_metadata_names_no_triton(monkeypatch):
    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    assert "pip install 'triton'" in checks._install_triton()


def test_the_named_compiler_counts(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert checks._compiler("cpu") is None


def test_a_missing_torch_is_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    answer = run_check("torch")
    assert answer["status"] == "fails"
    assert answer["remedy"].endswith("torch --index-url https://download.pytorch.org/whl/cpu")
    answer = run_check("torch", device="cuda", driver_cuda=[13, 0], capability=[9, 0])
    assert answer["remedy"].endswith("torch --index-url https://download.pytorch.org/whl/cu130")


def test_what_torchao_does_on_gpus_alone_is_not_here():
    answer = run_check("torchao", kind="fp8")
    assert (answer["status"], answer["remedy"]) == ("not here", None)
    assert "cuda only" in answer["says"]


# --- the GPU's checks, against stand-ins


@pytest.mark.parametrize(
    ("built", "known", "word"),
    [(None, (13, 0), "CPU"), ("13.0", (12, 8), "driver"), ("13.0", (13, 2), None), ("12.8", (13, 0), None)],
)
def test_driver_and_build(built, known, word):
    problem = builds.doctor_on_driver(built, "570.10", known, (9, 0))
    assert problem is None if word is None else word in problem[0]


@pytest.mark.parametrize(
    ("known", "capability", "index"),
    [
        ((13, 2), (9, 0), "cu130"),  # of a driver's major version any build will do
        ((13, 0), (12, 0), "cu130"),
        ((13, 0), (7, 5), "cu130"),
        ((13, 0), (7, 0), "cu126"),  # CUDA 13 has no Volta
        ((12, 9), (9, 0), "cu126"),
        ((12, 2), (8, 0), "cu126"),
        ((12, 8), (10, 0), "cu128"),  # CUDA 12.6 has no Blackwell
        ((12, 8), (12, 0), "cu128"),
        ((14, 0), (9, 0), "cu130"),
        ((13, 0), (6, 1), "cu126"),
    ],
)
def test_the_build_for_a_driver_and_a_gpu(known, capability, index):
    remedy = builds.doctor_remedy_for_torch_build(known, capability)
    assert f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{index}" in remedy
    assert index in builds.doctor_on_driver(None, "580.10", known, capability)[1]


def test_a_driver_too_old_for_every_build():
    says, remedy = builds.doctor_on_driver("13.0", "470.10", (11, 4), (8, 0))
    assert "knows CUDA up to 11.4" in says
    assert "update the driver to 525" in remedy
    assert "pip" not in remedy


def test_an_old_driver_may_be_updated_or_another_build_installed():
    _, remedy = builds.doctor_on_driver("13.0", "550.10", (12, 4), (8, 0))
    assert remedy.startswith("update the driver, or install")
    assert "whl/cu126" in remedy


def test_a_gpu_too_old_for_every_build():
    assert "compute capability 3.5" in builds.doctor_remedy_for_torch_build((12, 2), (3, 5))


def test_a_driver_that_does_not_tell():
    assert builds.doctor_remedy_for_torch_build(None, (9, 0)) == builds.REPLACE


@pytest.fixture
def gpu_build(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)


def build_answer(capability=(9, 0), known=(13, 0)):
    task = {"check": "cuda build", "device": "cuda", "driver": "580.10"}
    with stand_in_gpu():
        return worker.answer_doctor_task({**task, "driver_cuda": list(known), "capability": list(capability)})


def test_a_build_that_fits(gpu_build):
    answer = build_answer()
    assert answer["status"] == "ok", answer
    assert "driver 580.10" in answer["says"]


@pytest.mark.parametrize(("capability", "index"), [((7, 0), "cu126"), ((10, 0), "cu130")])
def test_a_build_without_kernels_for_the_gpu(gpu_build, capability, index):
    answer = build_answer(capability)
    assert answer["status"] == "fails"
    assert f"this GPU is sm_{capability[0]}{capability[1]}" in answer["says"]
    assert answer["remedy"].endswith(f"--index-url https://download.pytorch.org/whl/{index}")


def test_a_build_that_sees_no_gpu(gpu_build, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answer = build_answer()
    assert answer["status"] == "fails"
    assert answer["remedy"].endswith("--index-url https://download.pytorch.org/whl/cu130")


def test_a_build_for_the_cpu_alone(gpu_build, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    answer = build_answer()
    assert (answer["status"], answer["says"]) == ("fails", "this torch is a build for the CPU alone")
    assert answer["remedy"].endswith("--index-url https://download.pytorch.org/whl/cu130")


def test_half_and_attention_on_a_gpu():
    with stand_in_gpu():
        for check, more in (
            ("half", {"dtype": "float16", "capability": [9, 0]}),
            ("attention", {"backend": "_native_math", "dtypes": ["float16", "bfloat16"]}),
        ):
            answer = worker.answer_doctor_task({"check": check, "device": "cuda", **more})
            assert answer["status"] == "ok", answer
    answer = worker.answer_doctor_task({"check": "half", "device": "cuda", "dtype": "bfloat16", "capability": [7, 5]})
    assert answer["status"] == "not here"


@pytest.mark.parametrize("check", ["compile", "compile graphs"])
def test_what_triton_cannot_do_is_not_here(check):
    answer = worker.answer_doctor_task({"check": check, "device": "cuda", "capability": [6, 1]})
    assert answer["status"] == "not here"


@pytest.fixture
def compiles(monkeypatch):
    """``torch.compile`` that counts a graph and compiles nothing; the settings that it was given, and its calls."""
    seen = SimpleNamespace(settings=None, calls=0)

    def compile_(function, **settings):
        seen.settings = settings
        counters["stats"]["unique_graphs"] += 1

        def call(*tensors):
            seen.calls += 1
            return function(*tensors)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(checks, "_compiler", lambda device: "/usr/bin/gcc")
    return seen


def on_a_gpu(check):
    with stand_in_gpu():
        return worker.answer_doctor_task({"check": check, "device": "cuda", "capability": [9, 0]})


@pytest.mark.parametrize(
    ("attributes", "words"),
    [({"__version__": "3.9.1"}, "triton 3.9.1 and gcc"), ({}, "triton of an unknown version and gcc")],
)
def test_compiled_with_a_triton_of_any_distribution(compiles, monkeypatch, attributes, words):
    have_triton(monkeypatch, **attributes)  # no distribution of this name is installed, as with pytorch-triton
    answer = on_a_gpu("compile")
    assert answer["status"] == "ok", answer
    assert answer["says"].endswith(words)


def test_compiled_without_triton_fails(compiles, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    answer = on_a_gpu("compile")
    assert answer["status"] == "fails"
    assert "Triton cannot be imported" in answer["says"]
    assert "pip install 'triton" in answer["remedy"]


def test_recorded_graphs_are_counted(compiles, monkeypatch):
    have_triton(monkeypatch, __version__="3.9.1")
    child = SimpleNamespace(children={})
    node = SimpleNamespace(children={1: [child]})
    manager = SimpleNamespace(roots={1: [node]})
    monkeypatch.setattr(torch._dynamo, "reset", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cudagraph_trees, "get_manager", lambda device, create_if_none_exists: manager)
    answer = on_a_gpu("compile graphs")
    assert (answer["status"], answer["says"]) == ("ok", "2 CUDA graphs recorded and replayed")
    assert compiles.settings["mode"] == "reduce-overhead"
    assert compiles.calls == 3
    manager.roots = {1: [child]}
    assert on_a_gpu("compile graphs")["says"] == "1 CUDA graph recorded and replayed"


class Recording(TorchFunctionMode):
    """A CUDA graph's stand-in: what is called within it is called again, into the same results, by ``replay``."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            out.copy_(func(*args, **kwargs))


@pytest.fixture
def graphs(monkeypatch):
    """What recording a graph needs of ``torch.cuda``; what kind of graph is given."""

    def have(graph):
        monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    return have


def graph_answer():
    with stand_in_gpu():
        return worker.answer_doctor_task({"check": "cuda graphs", "device": "cuda"})


def test_a_graph_that_replays(graphs):
    graphs(Recording)
    answer = graph_answer()
    assert answer["status"] == "ok", answer
    assert "replayed on new numbers" in answer["says"]


def test_a_graph_that_replays_nothing_fails(graphs):
    graphs(type("Idle", (Recording,), {"replay": lambda graph: None}))
    answer = graph_answer()
    assert answer["status"] == "fails"
    assert "replayed" in answer["says"]


class OnCpu(TorchFunctionMode):
    """``cuda`` names the CPU; torchao's weights are no tensors of the stand-in, which says that they are on the GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in AS_THEY_ARE:
            return func(*args, **(kwargs or {}))
        return func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs or {}))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_torchao_on_a_gpu(gpu_build, monkeypatch, kind):
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    with OnCpu():
        answer = worker.answer_doctor_task({"check": "torchao", "device": "cuda", "kind": kind})
    assert answer["status"] == "ok", answer
    assert answer["says"].startswith("a quantized Linear is off by ")


def test_no_recorded_graph_fails(monkeypatch):
    monkeypatch.setattr(checks, "_compiled", lambda *a, **k: "compiled")
    answer = worker.answer_doctor_task({"check": "compile graphs", "device": "cpu"})
    assert answer["status"] == "fails"
    assert "no CUDA graph" in answer["says"]


# --- what is asked of which machine


class Asked:
    """Stands in for the child: remembers the tasks, and fails those that it is told to."""

    tasks: list[CheckTask]
    failing: frozenset[str] = frozenset()

    def __init__(self, gpu, deadline_s):
        Asked.gpu, Asked.tasks = gpu, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, task):
        Asked.tasks.append(task)
        status = "fails" if task.name in Asked.failing else "ok"
        return Finding(
            check=task.name, status=status, seconds=0.1, says="", remedy="mend it" if status != "ok" else None
        )


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(examine, "Checker", Asked)
    monkeypatch.setattr(Asked, "failing", frozenset())

    def have(*names, **kwargs):
        module = fake_pynvml(names, **kwargs)
        module.nvmlSystemGetCudaDriverVersion_v2 = lambda: 13020
        monkeypatch.setitem(sys.modules, "pynvml", module)

    return have


def by_name(found):
    return {finding.check: finding for finding in found}


def test_the_drivers_cuda(machine):
    machine("NVIDIA L40S")
    assert nvml.driver_cuda() == (13, 2)
    assert sys.modules["pynvml"].open == 0


def test_a_driver_that_does_not_tell_its_cuda(machine, monkeypatch):
    machine("NVIDIA L40S")
    module = sys.modules["pynvml"]

    def refuse():
        raise module.NVMLError_Unknown("no such function")

    monkeypatch.setattr(module, "nvmlSystemGetCudaDriverVersion_v2", refuse)
    assert nvml.driver_cuda() is None
    assert module.open == 0
    build = next(task for task in examine._checks(Gpu(0, "GPU-0", "Tesla T4", 15, (7, 5), "580.1")) if task.vital)
    assert build.arguments["driver_cuda"] is None
    monkeypatch.setattr(module, "nvmlInit", refuse)
    assert nvml.driver_cuda() is None


def test_a_cpu(machine):
    machine(init_error="NVMLError_LibraryNotFound")
    found = by_name(examine.examine_machine())
    assert Asked.gpu is None
    assert {task.arguments["device"] for task in Asked.tasks} == {"cpu"}
    assert found["gpu"].status == found["cuda graphs"].status == found["fp8 matmul"].status == "not here"
    names = {task.name for task in Asked.tasks}
    assert {"torch", "fp16", "bf16", "compile", "int8 matmul", "int8 torchao", "attention=sdpa"} <= names
    assert {"attention=cudnn", "attention=efficient", "attention=sage"} <= found.keys() - names
    assert max(map(len, found)) <= examine.NAME_WIDTH


def test_a_gpu(machine):
    machine("NVIDIA L40S", "NVIDIA L4")
    found = by_name(examine.examine_machine())
    assert found["gpu 1"].says.startswith("NVIDIA L4, 48 GiB, compute capability 8.9")
    assert Asked.gpu == Gpu(0, "GPU-0aaa", "NVIDIA L40S", 48 * 2**30, (8, 9), "580.10")
    tasks = {task.name: task for task in Asked.tasks}
    assert tasks["cuda build"].arguments == {
        "device": "cuda", "capability": [8, 9], "driver": "580.10", "driver_cuda": (13, 2),
    }  # fmt: skip
    assert tasks["torch"].arguments == {"device": "cuda", "capability": [8, 9], "driver_cuda": (13, 2)}
    assert {"cuda graphs", "compile + cuda graphs", "fp8 matmul", "fp8 torchao", "int8 matmul"} <= tasks.keys()
    kernels = ("attention=flash", "attention=efficient", "attention=cudnn", "attention=math", "attention=sdpa")
    assert set(kernels) <= tasks.keys()
    assert tasks["attention=flash"].arguments["dtypes"] == ["float16", "bfloat16"]
    assert "needs" in found["attention=flash2"].says  # the package, with how to install it
    assert json.dumps([task.arguments for task in Asked.tasks])


def test_a_gpu_without_fp8(machine, monkeypatch):
    machine("Tesla T4")
    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetCudaComputeCapability", lambda handle: (7, 5))
    found = by_name(examine.examine_machine())
    asked = {task.name for task in Asked.tasks}
    assert not {"fp8 matmul", "fp8 torchao", "int8 matmul", "attention=flash"} & asked
    assert "compute capability 8.9" in found["fp8 matmul"].says


def test_a_version_that_is_newer_than_tested_is_named(machine, monkeypatch):
    machine(init_error="NVMLError_LibraryNotFound")
    monkeypatch.setattr(tested, "newer_than_tested", lambda: {"torch": ("2.14.0", "2.13.0")})
    finding = by_name(examine.examine_machine())["versions"]
    assert (finding.status, finding.says) == ("ok", "newer than tested: torch 2.14.0 (tested 2.13.0)")
    assert "pip install torch==2.13.0" in finding.remedy


def test_a_broken_driver_is_the_whole_answer(machine):
    machine(init_error="NVMLError_Unknown")
    (finding,) = examine.examine_machine()
    assert (finding.check, finding.status) == ("gpu", "fails")
    assert "nvidia-smi" in finding.remedy


def test_without_torch_nothing_else_is_tried(machine, monkeypatch):
    machine("NVIDIA L40S")
    monkeypatch.setattr(Asked, "failing", frozenset({"cuda build"}))
    found = examine.examine_machine()
    assert [task.name for task in Asked.tasks] == ["torch", "cuda build"]
    assert found[-1].check == "cuda build"


# --- the verb


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("not here", 0), ("fails", 1)])
def test_the_verb(monkeypatch, cli, status, code):
    remedy = "mend it" if status == "fails" else None
    findings = [
        Finding(check="gpu", status="not here", seconds=None, says="none"),
        Finding(check="compile", status=status, seconds=1.25, says="so it is", remedy=remedy),
    ]

    def stand_in(listener):
        for finding in findings:
            listener(finding)
        return findings

    monkeypatch.setattr(machines, "examine_machine", stand_in)
    assert cli("doctor", "--json") == (code, json.dumps(
        {"works": code == 0, "checks": [finding.model_dump() for finding in findings]}, indent=2
    ) + "\n", "")  # fmt: skip
    ended, out, err = cli("doctor")
    assert (ended, err) == (code, "")
    lines = out.splitlines()
    assert lines[1].split() == [*status.split(), "compile", *(["1.2", "s"]), "so", "it", "is"]
    assert [line.strip() for line in lines[2:-1]] == (["-> mend it"] if remedy else [])
    assert f"{int(status == 'fails')} fail" in lines[-1]


@pytest.mark.slow
def test_the_parent_imports_no_torch(tmp_path):
    code = (
        "import sys; from diffopt.doctor import examine; from diffopt.machine import nvml;"
        "examine.Child.ask = lambda self, task: examine.Finding(check=task.name, status='ok', seconds=0.0, says='');"
        "print(len(examine.examine_machine())); bad = {'torch', 'diffusers'} & set(sys.modules); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


@pytest.mark.slow
def test_the_whole_of_it(diffopt):
    """Compiles for real."""
    done = diffopt("doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, found
    assert found["compile"]["status"] == "ok"
    assert found["compile"]["seconds"] > 0.5  # its caches are empty
    assert found["attention=flex"]["status"] == "ok"
