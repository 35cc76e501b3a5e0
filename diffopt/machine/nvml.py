"""The one reader of NVML: which GPUs there are, and in what state one is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from diffopt.errors import Refusal
from diffopt.schema.record import Frozen


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver knows, major and minor; None where NVML does not tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())  # 13020 is 13.2
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
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
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return _gpu_device(pynvml, uuid)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise Refusal(f"NVML cannot read GPU {uuid}: {error}; see nvidia-smi") from error


def _gpu_device(pynvml: Any, uuid: str) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return Device(
        kind="cuda",
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        gpu=_gpu_state(pynvml, handle, uuid),
    )


def _gpu_state(pynvml: Any, handle: Any, uuid: str) -> GpuState:
    def ask(question: Callable[..., Any], *args: Any) -> Any:
        """None for what this driver or GPU does not support (a MIG slice has no clocks of its own)."""
        try:
            return question(*args)
        except pynvml.NVMLError:
            return None

    clock, limit = pynvml.nvmlDeviceGetClockInfo, pynvml.nvmlDeviceGetEnforcedPowerLimit
    milliwatts = ask(limit, handle)
    driver = ask(pynvml.nvmlSystemGetDriverVersion)
    return GpuState(
        uuid=uuid,
        driver=None if driver is None else _text(driver),
        clock_mhz=ask(clock, handle, pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask(clock, handle, pynvml.NVML_CLOCK_MEM),
        max_clock_mhz=ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
        power_limit_w=None if milliwatts is None else milliwatts / 1000,
        temperature_c=ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        throttle_reasons=_throttle_reasons(pynvml, ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)),
    )


def _throttle_reasons(pynvml: Any, bits: int | None) -> tuple[str, ...] | None:
    if bits is None:
        return None
    names = {
        "idle": pynvml.nvmlClocksEventReasonGpuIdle,
        "application clocks": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
        "power cap": pynvml.nvmlClocksEventReasonSwPowerCap,
        "hardware slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
        "sync boost": pynvml.nvmlClocksEventReasonSyncBoost,
        "thermal (software)": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        "thermal (hardware)": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        "power brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
        "display clocks": pynvml.nvmlClocksEventReasonDisplayClockSetting,
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


def detect() -> tuple[Gpu, ...]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves, in its order; empty without an NVIDIA driver.

    Raises Refusal when there is a driver that does not answer, because that is a broken machine and not a CPU.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as error:
        raise Refusal(f"this machine's NVIDIA driver does not answer: {error}; see nvidia-smi") from error
    try:
        gpus = [_read(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise Refusal(f"this machine's NVIDIA driver does not describe its GPUs: {error}; see nvidia-smi") from error
    finally:
        pynvml.nvmlShutdown()
    return _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _read(pynvml: Any, index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        driver=pynvml.nvmlSystemGetDriverVersion(),
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
