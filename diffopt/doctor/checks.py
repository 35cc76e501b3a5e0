"""The small tests of ``diffopt doctor``: each returns what it saw, or raises. Only its child process imports this."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from diffopt.doctor.builds import REPLACE, doctor_on_driver, doctor_remedy_for_cpu_build, doctor_remedy_for_torch_build
from diffopt.pipeline.device_check import has_kernels
from diffopt.pipeline.failure import describe_pipeline_error

if TYPE_CHECKING:
    import torch

# relative error of a product or an attention against float64; lossy kernels (fp8, sage) stay below it, garbage does not
TOLERANCE = 0.08
TRITON_NEEDS = (7, 0)  # the least compute capability that Triton generates code for


class NotHere(Exception):
    """This hardware cannot do it, and need not."""


class Fails(Exception):
    """It should work and does not; ``remedy`` says what to install or change."""

    def __init__(self, says: str, remedy: str) -> None:
        super().__init__(says)
        self.remedy = remedy


def try_torch(device: str, driver_cuda: list[int] | None = None, capability: list[int] | None = None) -> str:
    """Does torch import and multiply?"""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that is not there
        remedy = (
            doctor_remedy_for_cpu_build()
            if capability is None
            else doctor_remedy_for_torch_build(driver_cuda, capability)
        )
        raise Fails(f"torch cannot be imported: {describe_pipeline_error(error)}", remedy) from error
    a = torch.arange(6.0).reshape(2, 3)
    _close((a @ a.T).double(), torch.tensor([[5.0, 14.0], [14.0, 50.0]]), "a product of two matrices")
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build for the CPU alone"
    return f"torch {torch.__version__}, {cuda}, Python {platform.python_version()}"


def try_cuda_build(device: str, driver: str, driver_cuda: list[int] | None, capability: list[int]) -> str:
    """Is torch's CUDA build right for this driver and GPU?"""
    import torch

    built = torch.version.cuda
    too_old = doctor_on_driver(built, driver, driver_cuda, capability)
    if too_old is not None:
        raise Fails(*too_old)
    remedy = doctor_remedy_for_torch_build(driver_cuda, capability)
    if not torch.cuda.is_available():
        raise Fails(f"torch {torch.__version__} sees no CUDA device, though the driver {driver} does", remedy)
    arches = torch.cuda.get_arch_list()
    if not has_kernels(arches, (capability[0], capability[1])):
        raise Fails(
            f"torch {torch.__version__} is built for {' '.join(arches)}, this GPU is sm_{capability[0]}{capability[1]}",
            remedy,
        )
    x = torch.randn(128, 128, device=device)
    _close(x @ x, x.double().cpu() @ x.double().cpu(), "a product of two matrices on the GPU")
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"CUDA {built}, driver {driver}, cuDNN {cudnn}, {torch.cuda.get_device_name()}, {' '.join(arches)}"


def try_half_precision(device: str, dtype: str, capability: list[int] | None = None) -> str:
    """A product in half precision."""
    import torch

    if device == "cuda" and dtype == "bfloat16" and capability is not None and capability < [8, 0]:
        raise NotHere("emulated below compute capability 8.0, which is slow; choose precision=fp16")
    x = torch.randn(256, 256, device=device, dtype=getattr(torch, dtype))
    _close(x @ x, x.double().cpu() @ x.double().cpu(), f"a product in {dtype}")
    return "a product of two matrices is right"


def try_compile(device: str, capability: list[int] | None = None) -> str:
    """``torch.compile`` with inductor, from nothing: the caches are empty."""
    _check_triton(device, capability)
    return _compiled(device, "default")


def try_compiled_cuda_graphs(device: str, capability: list[int] | None = None) -> str:
    """``mode="reduce-overhead"``: compiled code replayed as a CUDA graph."""
    _check_triton(device, capability)
    import torch

    from diffopt.steps.compile.compiled_call import count_recorded_cuda_graphs  # all steps come with it

    torch._dynamo.reset()
    _compiled(device, "reduce-overhead", calls=3)  # one to warm up, one to record, one to replay
    recorded = count_recorded_cuda_graphs()
    if recorded < 1:
        raise Fails("compiled, but no CUDA graph was recorded", "choose compile=default; the log of a run says why")
    return f"{recorded} CUDA graph{'s' if recorded > 1 else ''} recorded and replayed"


def _check_triton(device: str, capability: list[int] | None) -> None:
    if device == "cuda" and capability is not None and tuple(capability) < TRITON_NEEDS:
        raise NotHere("Triton generates no code below compute capability 7.0; choose compile=none")


def _compiled(device: str, mode: str, calls: int = 1) -> str:
    """Compile a small function and compare what it returns with what it means."""
    import torch
    from torch._dynamo.utils import counters

    def work(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x @ y).softmax(-1) + x.sum()

    x, y = (torch.randn(64, 64, device=device) for _ in range(2))
    before = counters["stats"]["unique_graphs"]
    compiled = torch.compile(work, fullgraph=True, dynamic=False, mode=mode)
    try:
        for _ in range(calls):
            found = compiled(x, y).clone()
    except Exception as error:
        raise Fails(describe_pipeline_error(error), _compile_remedy(device)) from error
    graphs = counters["stats"]["unique_graphs"] - before
    if graphs < 1:
        raise Fails("torch.compile ran, but compiled nothing", "unset TORCH_COMPILE_DISABLE and TORCHDYNAMO_DISABLE")
    _close(found, work(x.double().cpu(), y.double().cpu()), "a compiled function")
    return f"a function became {graphs} graph, compiled by inductor with {_toolchain(device)}"


def _compile_remedy(device: str) -> str:
    """What a compiler needs and this machine has not."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return _install_triton()
    if _compiler(device) is None:
        return "install a C++ compiler (apt install g++), or name one in CC and CXX"
    if not headers.is_file():
        return "install Python's headers (apt install python3-dev)"
    return "choose compile=none until it works; the error is torch's own"


def _compiler(device: str) -> str | None:
    """The compiler that inductor (C++) and Triton (C) start, or None."""
    named, usual = ("CC", ("gcc", "clang", "cc")) if device == "cuda" else ("CXX", ("g++", "clang++", "c++"))
    asked = os.environ.get(named)
    return next((found for name in ([asked] if asked else usual) if (found := shutil.which(name))), None)


def _install_triton() -> str:
    """How to get the Triton that torch names; its distribution is not always called ``triton``."""
    try:
        texts = metadata.requires("torch") or []
    except metadata.PackageNotFoundError:
        texts = []
    named = [Requirement(text) for text in texts]
    wanted = next((f"{each.name}{each.specifier}" for each in named if "triton" in each.name), "triton")
    return f"install Triton in the version that this torch names, from where torch came: pip install '{wanted}'"


def _toolchain(device: str) -> str:
    compiler = Path(_compiler(device) or "an unknown compiler").name
    if device == "cpu":
        return compiler
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        raise Fails(
            f"compiled, but Triton cannot be imported: {describe_pipeline_error(error)}", _install_triton()
        ) from error
    return f"triton {getattr(triton, '__version__', 'of an unknown version')} and {compiler}"


def try_cuda_graphs(device: str) -> str:
    """Record a product and replay it on other numbers."""
    import torch

    x, y = (torch.randn(64, 64, device=device) for _ in range(2))
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):  # what is not yet initialized cannot be recorded
        x @ y
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = x @ y
    x.copy_(torch.randn(64, 64))
    graph.replay()
    torch.cuda.synchronize()
    _close(out, x.double().cpu() @ y.double().cpu(), "a replayed graph")
    return "a graph was recorded, and replayed on new numbers"


def try_attention(device: str, backend: str, dtypes: list[str] | None) -> str:
    """One of diffusers' attention backends, without a fallback to another one."""
    import torch
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    dtype = (dtypes[0] if dtypes else "float16") if device == "cuda" else "float32"
    q, k, v = (torch.randn(1, 128, 2, 64, device=device, dtype=getattr(torch, dtype)) for _ in range(3))
    with torch.no_grad():
        found = dispatch_attention_fn(q, k, v, backend=AttentionBackendName(backend))
    q64, k64, v64 = (t.double().cpu().transpose(1, 2) for t in (q, k, v))
    exact = torch.nn.functional.scaled_dot_product_attention(q64, k64, v64).transpose(1, 2)
    return f"{dtype}, off by {_close(found, exact, backend):.1e}"


def try_int8_product(device: str) -> str:
    """``torch._int_mm``: int8 times int8, added in int32; exact."""
    import torch

    a, b = (torch.randint(-128, 128, (64, 64), dtype=torch.int8) for _ in range(2))
    found = torch._int_mm(a.to(device), b.to(device)).cpu()
    if not torch.equal(found, a.int() @ b.int()):
        raise Fails("int8 products are wrong", REPLACE)
    return "exact"


def try_fp8_product(device: str) -> str:
    """``torch._scaled_mm``: float8 (e4m3) products with one scale per tensor."""
    import torch

    a, b = (torch.randn(64, 64, device=device) for _ in range(2))
    one = torch.ones((), device=device)
    eighth, other = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    found = torch._scaled_mm(eighth, other.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    exact = eighth.double().cpu() @ other.double().cpu().t()
    return f"off by {_close(found, exact, 'a float8 product'):.1e}"


def try_torchao_linear(device: str, kind: str) -> str:
    """A Linear that torchao quantized, as ``quant=int8_dynamic`` and ``quant=fp8_dynamic`` do."""
    if kind == "fp8" and device == "cpu":
        raise NotHere("works on cuda only; torchao computes in float8 on no CPU")
    import torch
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        quantize_,
    )
    from torchao.utils import should_reduce_range

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    linear = torch.nn.Sequential(torch.nn.Linear(64, 64)).to(device, dtype)
    x = torch.randn(32, 64, device=device, dtype=dtype)
    exact = linear.double()(x.double()).detach().cpu()
    linear.to(dtype)
    narrow = should_reduce_range(torch.device(device))
    configs = {
        "int8": lambda: Int8DynamicActivationInt8WeightConfig(reduce_range=narrow, set_inductor_config=False),
        "fp8": lambda: Float8DynamicActivationFloat8WeightConfig(set_inductor_config=False),
    }
    quantize_(linear, configs[kind]())
    with torch.no_grad():
        return f"a quantized Linear is off by {_close(linear(x), exact, 'a quantized Linear'):.1e}"


def _close(found: torch.Tensor, exact: torch.Tensor, what: str) -> float:
    """The relative error. Raises Fails where it says that the kernel computes something else."""
    exact = exact.double().cpu()
    error = float((found.double().cpu() - exact).norm() / exact.norm())
    if not error < TOLERANCE:  # NaN too
        raise Fails(f"{what} is wrong: it is off by {error:.1e}", REPLACE)
    return error
