"""Each public name of diffopt as a user uses it: in a plain script, in a notebook, in an application of Hydra's.

All run the same pieces, one after another, in a process of their own and in a folder that has nothing of diffopt in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import diffopt

# By name, in an order in which a user would come to them; each piece may use what those before it made.
USES = {
    "compose": """
        words = ["hardware=cpu", "workload.steps=1", "fuse=none,qkv", "precision=fp32,tf32"]
        words += ["measure=quick", "measure.max_variation=10"]
        cells = diffopt.compose(overrides=words, multirun=True)
        assert [cell.choices["fuse"] for cell in cells] == ["none", "none", "qkv", "qkv"]
        cell = cells[2]
    """,
    "Cell": """
        assert all(isinstance(cell, diffopt.Cell) for cell in cells) and len({cell.id for cell in cells}) == 4
        assert diffopt.Cell.from_plain(cell.model_dump(mode="json")) == cell
    """,
    "Recipe": """
        assert isinstance(cell.recipe, diffopt.Recipe) and cell.recipe.fuse.kind == "qkv"
    """,
    "plan": """
        print(diffopt.plan(cell))
        assert [diffopt.plan(cell).status for cell in cells] == ["ok", "refused", "ok", "refused"]
    """,
    "UsageError": """
        try:
            diffopt.compose(overrides=["fuse=qvk"])
        except diffopt.UsageError as error:
            said = str(error)
        assert "fuse" in said and "qkv" in said
    """,
    "DiffoptError": """
        try:
            diffopt.run(cells)
        except diffopt.DiffoptError as error:
            said = str(error)
        assert "one Cell is wanted" in said
    """,
    "run": """
        row = diffopt.run(cell, study="mine")
        refused = diffopt.run(cells[3], study="mine")
        assert [row.status, row.phase, refused.status, refused.phase] == ["ok", "measure", "refused", "plan"]
    """,
    "Result": """
        assert isinstance(row, diffopt.Result) and row.metrics.latency_s.median > 0
    """,
    "Study": """
        kept = {row.cell_id: row for row in diffopt.Study.open("mine").results()}
        assert kept == {cell.id: row, cells[3].id: refused}
        assert diffopt.run(cell, study="mine") == row
        assert "torch" not in sys.modules, "all until here needs no torch in this process"
    """,
    "load": """
        pipe = diffopt.load(overrides=["hardware=cpu", "fuse=qkv"])
        assert pipe.diffopt.id == cell.recipe.id
        assert pipe("a red circle", num_inference_steps=1).images[0].size == (64, 64)
    """,
    "Refusal": """
        try:
            diffopt.load(overrides=["hardware=cpu", "precision=tf32"])
        except diffopt.Refusal as error:
            said = str(error)
        assert "precision=tf32" in said
    """,
    "NoEffect": """
        other = diffopt.load(overrides=["hardware=cpu"])
        try:
            cell.recipe.fuse.verify(other, cell.sites[0])
        except diffopt.NoEffect as error:
            said = str(error)
        assert "fuse" in said
    """,
    "optimize": """
        assert diffopt.optimize(other, overrides=["hardware=cpu", "quant=int8_weight"]) is other
        assert other.diffopt.quant.kind == "int8_weight"
    """,
    "save_quantized": """
        diffopt.save_quantized(other, "saved")
        from diffusers import DiffusionPipeline
        DiffusionPipeline.from_pretrained("saved", use_safetensors=True)
        print("all is done")
    """,
}

# A kernel runs each cell in one namespace, on the main thread, below a loop that runs; standard output is no file.
NOTEBOOK = """
import asyncio, io, json, signal, sys

class Stream(io.TextIOBase):
    def __init__(self):
        self.text = ""
    def write(self, text):
        self.text += text
        return len(text)
    def fileno(self):
        raise io.UnsupportedOperation("fileno")

async def kernel(pieces):
    loop, interrupts = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
    space = {"__name__": "__main__"}
    for piece in ["import sys, diffopt", *pieces]:
        exec(compile(piece, "<cell>", "exec"), space)
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is loop and signal.getsignal(signal.SIGINT) is interrupts
    again = await asyncio.to_thread(space["diffopt"].run, space["cell"], study="mine")
    assert again == space["row"]

shown = sys.stdout, sys.stderr
sys.stdout = out = Stream()
sys.stderr = Stream()
sys.stdin = None
try:
    asyncio.run(kernel(json.load(open("pieces.json"))))
finally:
    sys.stdout, sys.stderr = shown
print(out.text)
"""
# With configs of its own by the names that diffopt's have, in the store that Hydra keeps for the whole process.
APPLICATION = """
import json, sys
from dataclasses import dataclass
from typing import Any
import diffopt, hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

@dataclass
class Model:
    layers: int = 18

@dataclass
class Config:
    a: int = 1
    b: Any = "${twice:${a}}"
    model: Any = None

OmegaConf.register_new_resolver("twice", lambda number: 2 * number)
store = ConfigStore.instance()
store.store(name="config", node=Config)
store.store(group="model", name="tiny", node=Model)
store.store(group="model", name="resnet", node=Model)

@hydra.main(version_base=None, config_path="theirs", config_name="app")
def main(cfg):
    theirs, space = GlobalHydra.instance().hydra, {"diffopt": diffopt, "sys": sys}
    for piece in json.load(open("pieces.json")):
        exec(compile(piece, "<piece>", "exec"), space)
        assert GlobalHydra.instance().hydra is theirs and HydraConfig.get().job.name == "app"
    again = hydra.compose("app", overrides=["+model=resnet"])
    assert (again.a, again.model.layers, cfg.a, cfg.b) == (1, 18, 7, 14)

main()
"""
PIECES = [textwrap.dedent(piece).strip() for piece in USES.values()]
PLACES = {
    "a plain script": ("script.py", "\n".join(["import sys", "import diffopt", *PIECES]), []),
    "a notebook": ("notebook.py", NOTEBOOK, []),
    "an application of Hydra's": ("app.py", APPLICATION, ["a=7"]),
}


def test_every_public_name_has_a_use() -> None:
    assert sorted(USES) == diffopt.__all__
    assert all(f"diffopt.{name}" in text for name, text in USES.items())


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_name_works_in(place: str, tmp_path: Path) -> None:
    name, code, words = PLACES[place]
    (tmp_path / name).write_text(code)
    (tmp_path / "pieces.json").write_text(json.dumps(PIECES))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "app.yaml").write_text("defaults: [config, _self_]\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", name, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "fuse       fuse=qkv" in done.stdout, "the plan was printed"
    assert "all is done" in done.stdout
