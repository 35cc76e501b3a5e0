"""The commit of the working directory's repository, and that nothing in it is started to learn it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from diffopt.machine import git


@pytest.fixture
def repository(tmp_path, monkeypatch):
    def run(*args):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", *who, *args], cwd=tmp_path, check=True, capture_output=True)

    run("init", "-q")
    (tmp_path / "recipe.yaml").write_text("a: 1\n")
    run("add", ".")
    run("commit", "-qm", "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commit_and_whether_it_was_changed(repository):
    clean = git.git_state()
    assert clean is not None
    assert len(clean.commit) == 40
    assert not clean.dirty
    (repository / "studies").mkdir()
    (repository / "studies/row").touch()
    assert git.git_state() == clean  # what runs leave behind does not count
    (repository / "recipe.yaml").write_text("a: 2\n")
    assert git.git_state() == git.Git(commit=clean.commit, dirty=True)


def test_one_without_a_commit_is_none(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert git.git_state() is None


def test_no_repository_and_no_git_are_fine(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git.git_state() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git.git_state() is None


@pytest.fixture
def canary(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A command, and the file that is there once it was run."""
    folder = tmp_path_factory.mktemp("canary")
    program, sung = folder / "canary", folder / "sung"
    program.write_text(f"#!/bin/sh\ntouch {sung}\ncat\n")
    program.chmod(0o755)
    return str(program), sung


def configured(folder: Path, *words: str) -> None:
    subprocess.run(["git", "config", *words], cwd=folder, check=True)


ATTACKS = {
    "fsmonitor": lambda program: [("core.fsmonitor", program)],
    "clean filter": lambda program: [("filter.evil.clean", program)],
    "filter process": lambda program: [("filter.evil.process", program), ("filter.evil.required", "true")],
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_repository_starts_nothing(repository: Path, canary: tuple[str, Path], name: str) -> None:
    program, sung = canary
    for key, value in ATTACKS[name](program):
        configured(repository, key, value)
    (repository / ".git/info").mkdir(exist_ok=True)
    (repository / ".git/info/attributes").write_text("* filter=evil\n")
    (repository / "recipe.yaml").write_text("a: 2\n")
    found = git.git_state()
    assert not sung.exists()
    assert found is not None
    assert found.dirty
    subprocess.run(["git", "status"], cwd=repository, capture_output=True, check=False)
    assert sung.exists(), "plain git starts it, so that this shows something"


def test_a_filter_that_cannot_be_switched_off_makes_a_repository_none(
    repository: Path, canary: tuple[str, Path]
) -> None:
    program, sung = canary
    configured(repository, "filter.a=b.clean", program)
    (repository / ".git/info").mkdir(exist_ok=True)
    (repository / ".git/info/attributes").write_text("* filter=a=b\n")
    (repository / "recipe.yaml").write_text("a: 2\n")
    assert git.git_state() is None
    assert not sung.exists()
    subprocess.run(["git", "status"], cwd=repository, capture_output=True, check=False)
    assert sung.exists(), "plain git starts it, so that this shows something"


@pytest.mark.parametrize("remote", ["ssh://host/path", "ext::{program}", "/tmp"])
def test_a_clone_without_some_objects_fetches_none(repository: Path, canary: tuple[str, Path], remote: str) -> None:
    program, sung = canary
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": remote.format(program=program),
        "remote.origin.uploadpack": program,
        "core.sshCommand": program,
        "protocol.allow": "always",
        "protocol.ext.allow": "always",
    }.items():
        configured(repository, key, value)
    Path(program).write_text(f"#!/bin/sh\ntouch {sung}\n")  # which answers nothing: git would wait for more
    asked = ["git", "rev-parse", "HEAD^{tree}"]
    tree = subprocess.run(asked, cwd=repository, check=True, capture_output=True, text=True).stdout.strip()
    (repository / ".git/objects" / tree[:2] / tree[2:]).unlink()
    assert git.git_state() is None
    assert not sung.exists()
    subprocess.run(["git", "status"], cwd=repository, capture_output=True, check=False)
    assert sung.exists(), "plain git starts it, so that this shows something"


def test_a_hook_is_not_run(repository: Path, canary: tuple[str, Path]) -> None:
    program, sung = canary
    hook = repository / ".git/hooks/post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_bytes(Path(program).read_bytes())
    hook.chmod(0o755)
    (repository / "recipe.yaml").touch()
    assert git.git_state() is not None
    assert not sung.exists()
    (repository / "recipe.yaml").touch()
    subprocess.run(["git", "status"], cwd=repository, capture_output=True, check=False)
    assert sung.exists(), "plain git starts it, so that this shows something"


def test_a_repository_among_the_files_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: tuple[str, Path]
) -> None:
    """A bare one needs no .git: a folder of files can be one."""
    subprocess.run(["git", "init", "-q", "--bare", "."], cwd=tmp_path, check=True)
    configured(tmp_path, "core.fsmonitor", canary[0])
    monkeypatch.chdir(tmp_path)
    assert git.git_state() is None
    assert not canary[1].exists()
