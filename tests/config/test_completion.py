"""Completion in a real bash: the function that ``diffopt -sc install=bash`` defines, called as bash calls it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
eval "$(diffopt -sc install=bash)"
complete -p diffopt >/dev/null || exit 3
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE}
    read -ra COMP_WORDS <<< "$COMP_LINE"
    [[ "$COMP_LINE" == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
done
"""

CASES = {
    "diffopt p": {"plan", "prefetch"},
    "diffopt ": {"run", "plan", "check", "prefetch", "ls", "show", "diff", "report", "compare", "doctor", "env"},
    "diffopt run compile=re": {"compile=reduce_overhead", "compile=regional", "compile=regions"},
    "diffopt plan -m quant=int8_d": {"quant=int8_dynamic", "quant=int8_dynamic_sdxl", "quant=int8_dynamic_vae"},
    "diffopt run -m compile=default compile.fullg": {"compile.fullgraph="},
    "diffopt show recipe=pyt": {"recipe=pytorch2"},
    "diffopt run workload.batch": {"workload.batch_size="},
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT, "bash", *CASES],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = [set(line.split()) for line in done.stdout.splitlines()]
    assert dict(zip(CASES, found, strict=True)) == CASES, done.stderr
