"""A stand-in for pynvml."""

from types import ModuleType, SimpleNamespace


def fake_pynvml(names=(), *, init_error=None):
    module = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    for kind in ("LibraryNotFound", "DriverNotLoaded", "Unknown"):
        setattr(module, f"NVMLError_{kind}", type(f"NVMLError_{kind}", (module.NVMLError,), {}))
    module.open = 0

    def init():
        if init_error is not None:
            raise getattr(module, init_error)(init_error)
        module.open += 1

    def shutdown():
        module.open -= 1

    module.nvmlInit, module.nvmlShutdown = init, shutdown
    module.nvmlDeviceGetCount = lambda: len(names)
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}aaa"
    module.nvmlDeviceGetName = lambda handle: names[handle]
    module.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(total=48 * 2**30)
    module.nvmlDeviceGetCudaComputeCapability = lambda handle: (8, 9)
    module.nvmlSystemGetDriverVersion = lambda: "580.10"
    return module
