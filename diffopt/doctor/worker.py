"""The child process of ``diffopt doctor``: runs small tests. Only this process imports torch.

``python -m diffopt.doctor.worker --answers-fd N`` reads one task a line from standard input, such as
``{"check": "compile", "device": "cpu"}``, and writes one answer a line to the descriptor. A crash ends this process
alone; whoever asks starts another one for what is left. It ends with its standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from diffopt.doctor import checks
from diffopt.pipeline.failure import describe_pipeline_error

CHECKS: dict[str, Callable[..., str]] = {
    "torch": checks.try_torch,
    "cuda build": checks.try_cuda_build,
    "half": checks.try_half_precision,
    "compile": checks.try_compile,
    "compile graphs": checks.try_compiled_cuda_graphs,
    "cuda graphs": checks.try_cuda_graphs,
    "attention": checks.try_attention,
    "int8 product": checks.try_int8_product,
    "fp8 product": checks.try_fp8_product,
    "torchao": checks.try_torchao_linear,
}


def answer_doctor_task(task: dict[str, Any]) -> dict[str, Any]:
    """Run one check; whatever it raises becomes the answer."""
    begin = time.perf_counter()
    status, remedy = "ok", None
    try:
        says = CHECKS[task.pop("check")](**task)
    except checks.NotHere as reason:
        status, says = "not here", str(reason)
    except checks.Fails as error:
        status, says, remedy = "fails", str(error), error.remedy
    except Exception as error:  # the border of the process: a line of the doctor's
        traceback.print_exc()
        status, says = "fails", describe_pipeline_error(error)
    return {"status": status, "says": says, "remedy": remedy, "seconds": time.perf_counter() - begin}


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m diffopt.doctor.worker", description="Small tests, one a line.")
    parser.add_argument("--answers-fd", type=int, required=True)
    descriptor = parser.parse_args(arguments).answers_fd
    os.set_inheritable(descriptor, False)  # a compiler that outlives us must not keep it open
    for line in sys.stdin:
        os.write(descriptor, json.dumps(answer_doctor_task(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main()
