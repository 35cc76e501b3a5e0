"""Stands in for the process of dry calls, without torch: ``stub_dry_call.py CALLS --answers-fd FD``.

The cell's negative prompt says what becomes of it: ok, fails, unclear, dies; anything else is ok.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

calls, fd = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[3])
with open(Path(os.environ["XDG_CACHE_HOME"]) / "started", "a") as file:
    file.write(f"{len(calls)}\n")
(Path(os.environ["XDG_CACHE_HOME"]) / "temporary").write_text(tempfile.mkdtemp())
for call in calls:
    mode = call["cell"]["workload"]["negative_prompt"]
    if mode == "dies":
        print("the last words", flush=True)
        os._exit(3)
    outcome = mode if mode in ("fails", "unclear") else "ok"
    answer = {"outcome": outcome, "says": "no luck", "keys": [], "remedy": "try", "lasting": True}
    os.write(fd, json.dumps({"number": call["number"], "answer": answer}).encode() + b"\n")
