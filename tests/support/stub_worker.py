"""Stands in for a worker, without torch: ``stub_worker.py FOLDER FD``. The cell's negative
prompt says what becomes of it."""

import ctypes
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

folder, fd = Path(sys.argv[1]), int(sys.argv[2])
os.set_inheritable(fd, False)
scratch = Path(tempfile.gettempdir())
own_scratch = scratch.name.startswith(("diffopt-cell-", "diffopt-drawing-"))
exchange = scratch if own_scratch else folder  # where an outcome is looked for


def phase(name):
    os.write(fd, json.dumps({"phase": name}).encode() + b"\n")


def leave(outcome):
    (exchange / "outcome.json").write_text(outcome)


def ok():
    phase("optimize")
    phase("measure")
    (folder / "0.png").touch()
    metrics = {"latency_s": {"samples": [1.0, 1.0], "median": 1.0, "q1": 1.0, "q3": 1.0}}
    row = {"status": "ok", "phase": "measure", "valid": True, "metrics": metrics, "pictures": ["0.png"]}
    leave(json.dumps(row))


def noisy():
    """Not valid the first time, and then valid."""
    again = folder.parent / "again"
    metrics = {"latency_s": {"samples": [1.0, 3.0], "median": 2.0, "q1": 1.0, "q3": 3.0}}
    row = {"status": "ok", "phase": "measure", "valid": again.exists(), "metrics": metrics}
    again.touch()
    leave(json.dumps(row | {"reason": None if row["valid"] else "latency varies"}))


def rounds(number_of_calls=2):
    """Round 1 takes 1.0 and 1.5 s, round 2 takes 2.0 and 2.5 s, …; its figures are of all samples so far."""
    phase("measure")
    print(f"round {_round()}")
    (folder / "0.png").touch()
    own = [_round() + 0.5 * call for call in range(number_of_calls)]
    samples = [sample["latency"] for ended in _ended() for sample in ended["outcome"]["samples"]] + own
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    metrics = {"load_s": 10.0 * _round(), "first_call_s": 20.0 * _round(), "warmup_s": 30.0 * _round()}
    metrics |= {"latency_s": {"samples": samples, "median": median, "q1": q1, "q3": q3}}
    metrics |= {"peak_memory_bytes": {"first_call": [5, 9, 7][_round() - 1], "steady": [3, 2, 1][_round() - 1]}}
    row = {"status": "ok", "phase": "measure", "valid": True, "metrics": metrics, "pictures": ["0.png"]}
    leave(json.dumps(row | {"samples": [{"latency": latency, "parts": []} for latency in own]}))


def slowed():
    """As ``rounds``, but the first one is not valid."""
    rounds()
    row = json.loads((exchange / "outcome.json").read_text())
    first = {"valid": False, "reason": "the GPU was slowed down"} if _round() == 1 else {}
    leave(json.dumps(row | first))


def second_fails():
    error() if _round() == 2 else rounds()


def second_hangs():
    hang() if _round() == 2 else rounds()


def second_hangs_once():
    again = folder.parent / "again"
    if _round() == 2 and not again.exists():
        again.touch()
        hang()
    rounds()


def _ended():
    file = folder / "rounds.json"
    return json.loads(file.read_text())["rounds"] if file.exists() else []


def _round():
    return len(_ended()) + 1


def start():
    """Finds what the processes before it left in its caches."""
    caches = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    print(caches)
    caches.mkdir(parents=True, exist_ok=True)
    found = len(list(caches.iterdir()))
    (caches / str(found)).touch()
    cache = {"hits": found, "misses": 0 if found else 1}
    metrics = {"load_s": 1.0, "first_call_s": 2.0, "compile_cache": cache}
    leave(json.dumps({"status": "ok", "phase": "measure", "valid": True, "metrics": metrics}))


def litter():
    """Dies with files of its own in its temporary folder."""
    print(tempfile.mkdtemp(), os.environ["TORCHINDUCTOR_CACHE_DIR"], flush=True)
    package = Path(os.environ["DIFFOPT_CACHE_DIR"], "aot", "diffopt-aot-left0000")
    package.mkdir(parents=True)
    (package / ".owner").touch()
    (folder / ".0.png.1.tmp").touch()
    sigkill()


def removes_study():
    """Somebody removes the study while it measures."""
    shutil.rmtree(folder.parents[2])
    phase("measure")
    metrics = {"latency_s": {"samples": [7.0, 7.0], "median": 7.0, "q1": 7.0, "q3": 7.0}}
    leave(json.dumps({"status": "ok", "phase": "measure", "valid": True, "metrics": metrics}))


def verbose():
    """Prints more than a limit on files allows."""
    print("x" * 2**20)
    sys.stdout.flush()
    ok()


def busy():
    """What workers may do: processes and files of its own, C code that holds Python's lock, an end without manners."""
    number = random.Random(os.getpid()).random()
    subprocess.Popen(["sleep", "600"])
    Path(tempfile.mkdtemp(), "unpacked").touch()
    for name in ("optimize", "compile", "warmup"):
        phase(name)
        (ctypes.PyDLL(None) if number < 0.3 else ctypes.CDLL(None)).usleep(100_000)
    rounds()
    row = json.loads((exchange / "outcome.json").read_text())
    row["metrics"] |= {"load_s": 1.0, "first_call_s": 2.0}
    leave(json.dumps(row))
    os.kill(0 if number < 0.8 else os.getpid(), signal.SIGKILL)


def error():
    phase("warmup")
    leave(json.dumps({"status": "error", "phase": "warmup", "reason": "no effect"}))


def exit0():
    phase("compile")


def exit3():
    print("the last line")
    sys.exit(3)


def sigkill():
    os.kill(os.getpid(), signal.SIGKILL)


def sigsegv():
    os.kill(os.getpid(), signal.SIGSEGV)


def hang():
    """Deaf to a polite request, with a process that must not be left behind."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    (folder / "pids").write_text(f"{os.getpid()} {child.pid}")
    phase("compile")
    time.sleep(600)


def garbage_report():
    os.write(fd, b'{"phase": "lunch"}\n')
    time.sleep(600)


def flood():
    while True:
        os.write(fd, b"x" * 1024)


def cut_report():
    os.write(fd, b'{"phase": "comp')


def garbage_outcome():
    leave('{"status": "ok", "phase": 7')


def lingering():
    """Says all, but does not go."""
    ok()
    os.close(fd)
    time.sleep(600)


def heir():
    """Leaves a process that holds the progress descriptor open."""
    ok()
    os.set_inheritable(fd, True)
    child = subprocess.Popen(["sleep", "600"], pass_fds=(fd,))
    (folder / "pids").write_text(f"{child.pid}")


def draws():
    """Pictures that others are compared with, or a cell that compares its own with those that it is told of."""
    comparisons = exchange / "comparisons.json"
    if comparisons.exists():
        asked = json.loads(comparisons.read_text())
        phase("quality")
        figures = {"reference": (asked["reference"] or {}).get("drawing", {}).get("id"), "reason": asked["reason"]}
        figures |= {"floors": [{"changed": name, "distance": None} for name in asked["floors"]] + asked["without"]}
        metrics = {"latency_s": {"samples": [1.0, 1.0], "median": 1.0, "q1": 1.0, "q3": 1.0}}
        leave(json.dumps({"status": "ok", "phase": "quality", "valid": True, "metrics": metrics, "quality": figures}))
        return
    with open(folder.parents[2] / "drawn", "a") as file:
        file.write(f"{folder.parent.name}\n")
    time.sleep(0.3)
    phase("quality")
    (folder / "quality").mkdir()
    names = [f"{index}.png" for index in range(4)]
    for name in (*names, "latents.safetensors"):
        (folder / "quality" / name).touch()
    leave(json.dumps({"status": "ok", "phase": "quality", "drawn": names}))


def hangs_while_comparing():
    """What was measured is written before."""
    if not (exchange / "comparisons.json").exists():
        draws()
        return
    metrics = {"latency_s": {"samples": [1.0, 1.0], "median": 1.0, "q1": 1.0, "q3": 1.0}}
    said = {"reason": "the process ended before the pictures were compared", "settled": False}
    row = {"status": "ok", "phase": "measure", "valid": True, "metrics": metrics, "quality": said}
    phase("measure")
    leave(json.dumps(row))
    phase("quality")
    time.sleep(600)


def dies_while_comparing():
    if (exchange / "comparisons.json").exists():
        said = {"reason": "the process ended before the pictures were compared", "settled": False}
        leave(json.dumps({"status": "ok", "phase": "measure", "valid": True, "quality": said}))
        phase("quality")
        sigkill()
    draws()


def draws_no_reference():
    if (exchange / "comparisons.json").exists():
        draws()
    else:
        with open(folder.parents[2] / "drawn", "a") as file:
            file.write(f"{folder.parent.name}\n")
        leave(json.dumps({"status": "oom", "phase": "load", "reason": "too large"}))


if __name__ == "__main__":
    mode = yaml.safe_load((folder / "cell.yaml").read_text())["workload"]["negative_prompt"]
    globals()[mode]()
