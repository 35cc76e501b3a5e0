"""Where compiling leaves its files, and the artifact that carries them to another process."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.places import TESTS

from diffopt.errors import Refusal, UsageError
from diffopt.machine import compile_cache
from diffopt.machine.compile_cache import (
    compile_cache_root,
    compile_conditions_here,
    load_compile_cache_artifact,
    private_compile_caches,
    save_compile_cache_artifact,
)


def test_packages_lie_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("DIFFOPT_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert compile_cache_root() == tmp_path / ".cache" / "diffopt"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert compile_cache_root() == tmp_path / ".cache" / "diffopt", "the specification ignores relative ones"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compile_cache_root() == tmp_path / "xdg" / "diffopt"
    monkeypatch.setenv("DIFFOPT_CACHE_DIR", str(tmp_path / "own"))
    assert compile_cache_root() == tmp_path / "own"


def test_private_caches_are_all_below_one_folder(monkeypatch, tmp_path):
    found = private_compile_caches(tmp_path)
    assert len(set(found.values())) == len(found)
    assert all(Path(path).parent == tmp_path for path in found.values())
    for name, path in found.items():
        monkeypatch.setenv(name, path)
    from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

    assert Path(cache_dir()).parent == Path(triton_cache_dir(0)).parent == compile_cache_root().parent == tmp_path


def test_nothing_imports_torch_before_an_artifact_is_used():
    code = "import sys, diffopt.machine.compile_cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def caches(monkeypatch, tmp_path) -> Path:
    """Inductor's folder is this test's own, and torch's part of an artifact is a word that is written down."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    info = SimpleNamespace(artifacts={"inductor": ["a", "b"], "aot_autograd": ["c"]})
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"graphs", info))
    loaded = tmp_path / "loaded"
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda content: loaded.write_bytes(content) and info)
    return tmp_path


def changed(path: Path, **entries: bytes) -> str:
    """Replace entries of an artifact, as its author might; returns the new SHA-256."""
    with zipfile.ZipFile(path) as file:
        kept = {name: file.read(name) for name in file.namelist()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in {**kept, **entries}.items():
            file.writestr(name, content)
    path.write_bytes(packed.getvalue())
    return hashlib.sha256(packed.getvalue()).hexdigest()


def test_an_artifact_says_what_it_is_good_for(caches):
    saved = save_compile_cache_artifact(caches / "cache.zip", "cpu")
    assert saved.sha256 == hashlib.sha256(saved.path.read_bytes()).hexdigest()
    assert saved.bytes == saved.path.stat().st_size
    with zipfile.ZipFile(saved.path) as file:
        manifest = json.loads(file.read("manifest.json"))
    assert manifest["entries"] == saved.entries == 3
    assert manifest["place"]["versions"]["torch"] in torch.__version__
    assert manifest["place"]["threads"] == torch.get_num_threads()
    assert load_compile_cache_artifact(saved.path, saved.sha256.upper(), "cpu").entries == 3
    assert (caches / "loaded").read_bytes() == b"graphs"


def test_nothing_compiled_makes_no_artifact(caches, monkeypatch):
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    assert save_compile_cache_artifact(caches / "cache.zip", "cpu") is None
    assert not (caches / "cache.zip").exists()


def test_kernels_that_this_process_loaded_are_carried_to_their_place(caches, monkeypatch):
    kernel, other = caches / "inductor" / "ab" / "x.so", caches / "inductor" / "ab" / "unused.so"
    kernel.parent.mkdir(parents=True)
    kernel.write_bytes(b"code")
    other.write_bytes(b"of another process")
    maps = caches / "maps"
    maps.write_text(
        f"7f00-7f01 r--p 00000000 08:01 42                         {kernel}\n"
        f"7f01-7f02 r-xp 00001000 08:01 42                         {kernel}\n"
        "7f02-7f03 r-xp 00001000 08:01 43                         /usr/lib/libm.so\n"
        "7f03-7f04 rw-p 00000000 00:00 0 \n"
    )
    monkeypatch.setattr(compile_cache, "MAPS", maps)
    saved = save_compile_cache_artifact(caches / "cache.zip", "cpu")
    assert saved.kernels == 1
    kernel.unlink()
    other.unlink()
    load_compile_cache_artifact(saved.path, saved.sha256, "cpu")
    assert kernel.read_bytes() == b"code"
    assert not other.exists()


def test_an_artifact_is_not_opened_without_its_own_hash(caches, monkeypatch):
    saved = save_compile_cache_artifact(caches / "cache.zip", "cpu")
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(UsageError, match="runs its author's code, so it is not opened"):
        load_compile_cache_artifact(saved.path, "0" * 64, "cpu")
    with pytest.raises(UsageError, match="cannot be read"):
        load_compile_cache_artifact(caches / "nowhere.zip", "0" * 64, "cpu")
    assert not (caches / "loaded").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("versions", {"torch": "1.0"}), ("device", "another processor"), ("threads", 7)],
)
def test_an_artifact_of_another_place_is_refused(caches, name, value):
    saved = save_compile_cache_artifact(caches / "cache.zip", "cpu")
    here = compile_conditions_here("cpu").model_dump(mode="json")
    moved = {**here, name: {**here[name], **value} if name == "versions" else value}
    manifest = {"format": 1, "place": moved, "entries": 3, "kernels": 0}
    digest = changed(saved.path, **{"manifest.json": json.dumps(manifest).encode()})
    shown = "torch 1.0" if name == "versions" else f"{name} {value}"
    with pytest.raises(Refusal, match=f"would start nothing warm here, as it was made with {shown}"):
        load_compile_cache_artifact(saved.path, digest, "cpu")
    assert not (caches / "loaded").exists()


@pytest.mark.parametrize(
    "entries",
    [
        {"manifest.json": b"{}"},
        {"manifest.json": b'{"format": 2}'},
        {"kernels/../../x.so": b"code"},
        {"kernels//tmp/x.so": b"code"},
        {"kernels/x.py": b"code"},
    ],
)
def test_what_is_no_artifact_is_refused(caches, entries):
    saved = save_compile_cache_artifact(caches / "cache.zip", "cpu")
    digest = changed(saved.path, **entries)
    with pytest.raises(UsageError, match="is not an artifact that diffopt saved"):
        load_compile_cache_artifact(saved.path, digest, "cpu")
    assert not (caches / "loaded").exists()


def test_a_file_that_is_no_archive_is_refused(caches):
    file = caches / "cache.zip"
    file.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(UsageError, match="is not an artifact"):
        load_compile_cache_artifact(file, hashlib.sha256(file.read_bytes()).hexdigest(), "cpu")


def test_a_part_that_torch_cannot_read_is_refused(caches, monkeypatch):
    saved = save_compile_cache_artifact(caches / "cache.zip", "cpu")
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda content: None)
    with pytest.raises(Refusal, match="cannot read its part"):
        load_compile_cache_artifact(saved.path, saved.sha256, "cpu")


START = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from support.option_steps import step
from support.tiny_pipelines import picture, pipeline, site
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import CppBuilder
from diffopt.machine.compile_cache import load_compile_cache_artifact
from diffopt.machine.compile_cache import save_compile_cache_artifact

built = []
build = CppBuilder.build
CppBuilder.build = lambda self: (built.append(self.get_target_file_path()), build(self))[1]
torch.set_num_threads(1)
file = Path(sys.argv[2])
if len(sys.argv) == 4:
    load_compile_cache_artifact(file, sys.argv[3], "cpu")
pipe = pipeline()
step("compile", "regional").apply(pipe, site())
picture(pipe, 1)
found = counters["inductor"]
kernels = [path for path in built if path.endswith(".main.so")]  # others probe what compiler and processor can do
print("FOUND", found["fxgraph_cache_hit"], found["fxgraph_cache_miss"], len(kernels))
if len(sys.argv) == 3:
    print("SAVED", save_compile_cache_artifact(file, "cpu").sha256)
"""


@pytest.mark.slow
def test_a_fresh_folder_and_the_artifact_start_warm(tmp_path):
    """Without the artifact the same folder starts cold."""

    def start(caches: str, *arguments: str) -> str:
        command = [sys.executable, "-c", START, str(TESTS), str(tmp_path / "cache.zip"), *arguments]
        env = {**os.environ, **private_compile_caches(tmp_path / caches), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    cold = start("first")
    hits, misses, built = map(int, re.search(r"FOUND (\d+) (\d+) (\d+)", cold).groups())
    assert hits == 0
    assert misses >= 1
    assert built >= 1
    digest = re.search(r"SAVED (\w+)", cold)[1]
    warm = start("second", digest)
    assert re.search(r"FOUND (.*)", warm)[1] == f"{misses} 0 0", "all hits, and no kernel was built by a C++ compiler"
