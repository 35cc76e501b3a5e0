"""The one reader of NVML: which GPUs there are, and in what state one is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from diffopt.errors import Refusal
from diffopt.schema.record import Frozen


class _Unread(Exception):
    """NVML does not answer; the text is its own."""


class _Closed(_Unread):
    """It cannot even be opened."""


class _Absent(_Closed):
    """There is no NVIDIA driver."""


@contextmanager
def _opened() -> Iterator[Any]:
    """The library, opened; closed when the block ends. The only import of it.

    Raises one of the errors above for its own, of the block too.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded) as error:
        raise _Absent(str(error)) from error
    except pynvml.NVMLError as error:
        raise _Closed(str(error)) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise _Unread(str(error)) from error
    finally:
        pynvml.nvmlShutdown()


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver knows, major and minor; None where NVML does not tell."""
    try:
        with _opened() as library:
            number = int(library.nvmlSystemGetCudaDriverVersion_v2())  # 13020 is 13.2
    except _Unread:
        return None
    return number // 1000, number % 1000 // 10


# reasons that NVML gives for a clock that is forced down; "power cap" is no such: many GPUs always work at theirs
SLOWDOWNS = frozenset({"hardware slowdown", "thermal (software)", "thermal (hardware)", "power brake"})


class GpuState(Frozen):
    """What NVML says of a GPU at one moment; null where the driver does not tell."""

    uuid: str
    driver: str | None
    clock_mhz: int | None  # streaming multiprocessors, now
    memory_clock_mhz: int | None
    max_clock_mhz: int | None
    power_limit_w: float | None
    temperature_c: int | None
    throttle_reasons: tuple[str, ...] | None  # why the clock is below its maximum; ("idle",) is normal at rest

    @property
    def slowdowns(self) -> tuple[str, ...]:
        """Those of the throttle reasons that make a measurement say little of the GPU."""
        return tuple(reason for reason in self.throttle_reasons or () if reason in SLOWDOWNS)


class Device(Frozen):
    """What the pipeline ran on. ``name`` is null for a GPU that this machine does not have."""

    kind: Literal["cuda", "cpu"]
    name: str | None
    memory_bytes: int | None
    gpu: GpuState | None


def gpu_device(uuid: str) -> Device:
    """Name, memory and present state of the GPU with this NVML uuid. Raises Refusal when NVML cannot read it."""
    try:
        with _opened() as library:
            return _gpu_device(library, uuid)
    except _Unread as error:
        raise Refusal(f"NVML cannot read GPU {uuid}: {error}; see nvidia-smi") from error


def _gpu_device(library: Any, uuid: str) -> Device:
    handle = library.nvmlDeviceGetHandleByUUID(uuid)
    return Device(
        kind="cuda",
        name=_text(library.nvmlDeviceGetName(handle)),
        memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
        gpu=_gpu_state(library, handle, uuid),
    )


def _gpu_state(library: Any, handle: Any, uuid: str) -> GpuState:
    def ask(question: Callable[..., Any], *args: Any) -> Any:
        """None for what this driver or GPU does not support (a MIG slice has no clocks of its own)."""
        try:
            return question(*args)
        except library.NVMLError:
            return None

    clock, limit = library.nvmlDeviceGetClockInfo, library.nvmlDeviceGetEnforcedPowerLimit
    milliwatts = ask(limit, handle)
    driver = ask(library.nvmlSystemGetDriverVersion)
    return GpuState(
        uuid=uuid,
        driver=None if driver is None else _text(driver),
        clock_mhz=ask(clock, handle, library.NVML_CLOCK_SM),
        memory_clock_mhz=ask(clock, handle, library.NVML_CLOCK_MEM),
        max_clock_mhz=ask(library.nvmlDeviceGetMaxClockInfo, handle, library.NVML_CLOCK_SM),
        power_limit_w=None if milliwatts is None else milliwatts / 1000,
        temperature_c=ask(library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU),
        throttle_reasons=_throttle_reasons(library, ask(library.nvmlDeviceGetCurrentClocksEventReasons, handle)),
    )


def _throttle_reasons(library: Any, bits: int | None) -> tuple[str, ...] | None:
    if bits is None:
        return None
    names = {
        "idle": library.nvmlClocksEventReasonGpuIdle,
        "application clocks": library.nvmlClocksEventReasonApplicationsClocksSetting,
        "power cap": library.nvmlClocksEventReasonSwPowerCap,
        "hardware slowdown": library.nvmlClocksEventReasonHwSlowdown,
        "sync boost": library.nvmlClocksEventReasonSyncBoost,
        "thermal (software)": library.nvmlClocksEventReasonSwThermalSlowdown,
        "thermal (hardware)": library.nvmlClocksEventReasonHwThermalSlowdown,
        "power brake": library.nvmlClocksEventReasonHwPowerBrakeSlowdown,
        "display clocks": library.nvmlClocksEventReasonDisplayClockSetting,
    }
    return tuple(name for name, bit in names.items() if bits & bit)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@dataclass(frozen=True)
class Gpu:
    """One GPU that CUDA programs of this process may use."""

    index: int  # NVML's, which follows the PCI bus; CUDA counts alike under CUDA_DEVICE_ORDER=PCI_BUS_ID
    uuid: str
    name: str  # such as "NVIDIA A100-SXM4-80GB"
    memory_bytes: int
    compute_capability: tuple[int, int]
    driver: str


def detect_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves, in its order; empty without an NVIDIA driver.

    Raises Refusal when there is a driver that does not answer, because that is a broken machine and not a CPU.
    """
    try:
        with _opened() as library:
            gpus = [_read(library, index) for index in range(library.nvmlDeviceGetCount())]
    except _Absent:
        return ()
    except _Closed as error:
        raise Refusal(f"this machine's NVIDIA driver does not answer: {error}; see nvidia-smi") from error
    except _Unread as error:
        raise Refusal(f"this machine's NVIDIA driver does not describe its GPUs: {error}; see nvidia-smi") from error
    return _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _read(library: Any, index: int) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        uuid=library.nvmlDeviceGetUUID(handle),
        name=library.nvmlDeviceGetName(handle),
        memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
        compute_capability=tuple(library.nvmlDeviceGetCudaComputeCapability(handle)),
        driver=library.nvmlSystemGetDriverVersion(),
    )


def _visible(gpus: list[Gpu], setting: str | None) -> tuple[Gpu, ...]:
    """Apply CUDA_VISIBLE_DEVICES: indices or beginnings of UUIDs; CUDA ignores what follows an unknown entry."""
    if setting is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.startswith("MIG-"):
            raise Refusal(
                f"CUDA_VISIBLE_DEVICES={setting} names a MIG slice, which is not supported: its peaks are not those of "
                "the GPU; give a whole GPU"
            )
        found = [gpu for gpu in gpus if entry == str(gpu.index) or (entry[:4] == "GPU-" and gpu.uuid.startswith(entry))]
        if not found:
            break
        chosen += found[:1]
    return tuple(chosen)
