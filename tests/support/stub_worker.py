"""Stands in for a worker, without torch: ``stub_worker.py FOLDER FD``. The cell's negative
prompt says what becomes of it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

folder, fd = Path(sys.argv[1]), int(sys.argv[2])
os.set_inheritable(fd, False)


def phase(name):
    os.write(fd, json.dumps({"phase": name}).encode() + b"\n")


def leave(outcome):
    (folder / "outcome.json").write_text(outcome)


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
    sigkill()


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


if __name__ == "__main__":
    mode = yaml.safe_load((folder / "cell.yaml").read_text())["workload"]["negative_prompt"]
    globals()[mode]()
