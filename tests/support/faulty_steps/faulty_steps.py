"""Steps of another package that go wrong, each in its own way, while they are applied in a real worker."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import ClassVar, Literal

from diffopt.errors import NoEffect, Refusal
from diffopt.schema.step import Order, Requirements, Step, register


class Faulty(Step):
    order: ClassVar[Order] = Order.LAYOUT


@register("layout")
class Exit0(Faulty):
    kind: Literal["exit0"]

    def apply(self, pipe, site):
        sys.exit(0)


@register("layout")
class Exit3(Faulty):
    kind: Literal["exit3"]

    def apply(self, pipe, site):
        sys.exit(3)


@register("layout")
class Sigkill(Faulty):
    kind: Literal["sigkill"]

    def apply(self, pipe, site):
        os.kill(os.getpid(), signal.SIGKILL)


@register("layout")
class Sigsegv(Faulty):
    kind: Literal["sigsegv"]

    def apply(self, pipe, site):
        ctypes.string_at(0)


@register("layout")
class Hang(Faulty):
    """With a process of its own that must not outlive it, both deaf to the polite request to end."""

    kind: Literal["hang"]

    def apply(self, pipe, site):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "600"])
        print("HANGING", flush=True)
        time.sleep(600)


@register("layout")
class Oom(Faulty):
    kind: Literal["oom"]

    def apply(self, pipe, site):
        import torch

        torch.empty(2**50, dtype=torch.uint8)


@register("layout")
class Garbage(Faulty):
    """In the outcome, after reports that were in order."""

    kind: Literal["garbage"]

    def apply(self, pipe, site):
        with open(sys.argv[2], "w") as outcome:
            outcome.write('{"status": "ok", "phase": 7')
        os._exit(0)


@register("layout")
class GarbageReport(Faulty):
    """On the progress descriptor; the process would go on."""

    kind: Literal["garbage_report"]

    def apply(self, pipe, site):
        os.write(int(sys.argv[4]), b"\xff\x00 not a phase\n")
        time.sleep(600)


@register("layout")
class Noop(Faulty):
    """Does nothing, and its proof says so."""

    kind: Literal["noop"]

    def verify(self, pipe, site):
        raise NoEffect("nothing is in another layout")


@register("layout")
class Raises(Faulty):
    kind: Literal["raises"]

    def apply(self, pipe, site):
        raise KeyError("conv_in")


@register("layout")
class Refuses(Faulty):
    kind: Literal["refuses"]

    def apply(self, pipe, site):
        raise Refusal("this pipeline has no layout")


@register("layout")
class Wants(Faulty):
    """Asks for a package that nobody has."""

    kind: Literal["wants"]

    def requires(self):
        return Requirements(packages=("faulty-steps>=1.0", "no-such-package>=2"))


@register("layout")
class Recompiles(Faulty):
    """Compiles something anew in every call of the pipeline, once the warm-up is over."""

    kind: Literal["recompiles"]

    def apply(self, pipe, site):
        import torch

        calls = []
        decode = pipe.vae.decode

        @torch.compile(backend="eager", dynamic=False)
        def double(x):
            return x * 2

        def recompiling(*args, **kwargs):
            calls.append(1)
            double(torch.ones(2 + max(0, len(calls) - 2)))
            return decode(*args, **kwargs)

        pipe.vae.decode = recompiling

    def verify(self, pipe, site):
        from diffopt.schema.step import Effect

        return Effect("a function that recompiles from the third call on")


@register("layout")
class Spoils(Faulty):
    """Leaves a weight that is no number, and its proof does not look."""

    kind: Literal["spoils"]

    def apply(self, pipe, site):
        pipe.unet.conv_out.bias.data[0] = float("nan")

    def verify(self, pipe, site):
        from diffopt.schema.step import Effect

        return Effect("all is well")
