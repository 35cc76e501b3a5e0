"""A cache of somebody else's is refused by name, before anything of it is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.option_steps import step
from support.rows import a_cell
from support.tiny_pipelines import pipeline, site
from torch._inductor.runtime import cache_dir_utils  # which names torch's own folder in the environment

from diffopt.errors import Refusal
from diffopt.machine import compile_cache
from diffopt.machine.compile_cache import CACHES, check_compile_caches_of_process, compile_caches_of_user
from diffopt.machine.own_folder import own_folder
from diffopt.machine.remembered import remember_answers, remembered_file
from diffopt.pipeline.build import apply_steps
from diffopt.run import process
from diffopt.run.sweep import run_one


@pytest.fixture
def generous() -> Iterator[None]:
    """The umask that takes nothing away."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where the user has named no cache but diffopt's own."""
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DIFFOPT_CACHE_DIR", str(tmp_path / "own"))
    return tmp_path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.usefixtures("generous")
def test_what_is_made_is_for_its_user_alone(here: Path) -> None:
    found = compile_caches_of_user()
    assert found == {
        "DIFFOPT_CACHE_DIR": str(here / "own"),
        "TORCHINDUCTOR_CACHE_DIR": str(here / "own/inductor"),
        "TRITON_CACHE_DIR": str(here / "own/triton"),
        "CUDA_CACHE_PATH": str(here / "own/cuda"),
    }
    assert {mode(Path(path)) for path in found.values()} == {0o700}
    own_folder(here / "deep/er", "X")
    assert (mode(here / "deep"), mode(here / "deep/er")) == (0o700, 0o700)


@pytest.mark.parametrize("variable", ["DIFFOPT_CACHE_DIR", *CACHES])
@pytest.mark.parametrize("rights", [0o770, 0o777, 0o1777])
def test_one_that_others_may_write_to_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, variable: str, rights: int
) -> None:
    open_to_all = here / "shared"
    open_to_all.mkdir()
    open_to_all.chmod(rights)
    monkeypatch.setenv(variable, str(open_to_all))
    with pytest.raises(Refusal, match=rf"{open_to_all} can be written to by others.*{variable}=/a/folder.*chmod 700"):
        compile_caches_of_user()


def test_one_of_another_user_is_refused_also_through_a_link(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, link = here / "theirs", here / "link"
    theirs.mkdir(0o755)
    link.symlink_to(theirs)
    assert own_folder(link, "X") == theirs.resolve(), "a link to a folder of one's own is customary"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Refusal, match=rf"{link} \(which is {theirs}\) belongs to "):
        own_folder(link, "X")


def test_one_that_anybody_may_replace_is_refused(here: Path) -> None:
    common = here / "common"
    common.mkdir()
    common.chmod(0o1777)
    assert own_folder(common / "mine", "X") == common / "mine"
    common.chmod(0o777)
    with pytest.raises(Refusal, match=f"lies in {common}, in which anybody may replace it"):
        own_folder(common / "mine", "X")


def test_one_that_cannot_be_made_says_so(here: Path) -> None:
    (here / "file").touch()
    with pytest.raises(Refusal, match=r"file/x cannot be made: .*X=/a/folder"):
        own_folder(here / "file/x", "X")


def test_in_ones_own_process_the_folder_is_looked_at_and_nothing_is_set(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_dir_utils, "default_cache_dir", lambda: str(here / "torchinductor_me"))
    check_compile_caches_of_process()
    assert mode(here / "torchinductor_me") == 0o700, "there before anybody else can make it"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    (here / "torchinductor_me").chmod(0o777)
    with pytest.raises(Refusal, match="torchinductor_me can be written to by others"):
        check_compile_caches_of_process()


def test_an_artifact_is_not_opened_where_the_cache_is_shared(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(here / "shared"))
    (here / "shared").mkdir()
    (here / "shared").chmod(0o777)
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda content: pytest.fail("it was loaded"))
    with pytest.raises(Refusal, match="shared"):
        compile_cache.load_compile_cache_artifact(here / "cache.zip", "0" * 64, "cpu")


def test_a_run_with_such_a_cache_starts_nothing_and_makes_no_study(
    cli: Callable[..., tuple[int, str, str]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_command", lambda *rest: ["touch", str(here / "started")])
    monkeypatch.setenv("TRITON_CACHE_DIR", str(here / "shared"))
    (here / "shared").mkdir()
    (here / "shared").chmod(0o777)
    for words in (["run"], ["run", "-m"], ["check"]):
        code, _, err = cli(*words, "hardware=cpu", "model=sd15", "model.weights=tiny")
        assert (code, err.count("\n")) == (1, 1)
        assert f"The cache folder {here}/shared can be written to by others than you" in err
    with pytest.raises(Refusal, match="shared"):
        run_one(a_cell())
    assert not (here / "started").exists()
    assert not (here / "studies").exists()


def test_what_compiles_in_ones_own_process_is_refused_before_it_does(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(here / "shared"))
    (here / "shared").mkdir()
    (here / "shared").chmod(0o777)
    pipe = pipeline()
    forward = pipe.unet._compiled_call_impl
    with pytest.raises(Refusal, match="shared"):
        apply_steps(pipe, [("compile", step("compile", "default"))], site())
    assert pipe.unet._compiled_call_impl is forward
    apply_steps(pipe, [("fuse", step("fuse", "qkv"))], site())


@pytest.mark.usefixtures("generous")
def test_what_is_remembered_is_ones_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    file = remembered_file("kinds.json")
    assert file == here / "cache/diffopt/kinds.json"
    remember_answers(file, {"a": "b"})
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    file.parent.chmod(0o777)
    with pytest.raises(Refusal, match=r"cache/diffopt can be written to by others.*XDG_CACHE_HOME=/a/folder"):
        remembered_file("kinds.json")
