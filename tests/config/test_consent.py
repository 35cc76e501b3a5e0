"""A stranger's recipes and options run nothing and read nothing of the user's, until the command line says so."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from support.slow import first_ones

import diffopt
from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.models.resolve import PACKAGED
from diffopt.steps.attention.hub_kernels import shipped_kernel_repositories

Cli = Callable[..., tuple[int, str, str]]

COMMIT = "0123456789abcdef" * 2 + "01234567"
SECRET = "hunter2"
CPU = ["hardware=cpu", "measure=quick"]
GPU = ["hardware=a100", "precision=fp16"]
IMG2IMG = ["model=sd15", "model.weights=tiny", "workload=img2img", *CPU]


@pytest.fixture
def place(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stranger's project, where the command is given; beside it the user's home."""
    project, home = tmp_path / "project", tmp_path / "home"
    (project / "tools").mkdir(parents=True)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(project)
    program = project / "tools" / "python"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    for secret in (home / ".netrc", home / "notes.txt", project / ".env"):
        secret.write_text(SECRET)
    (project / "link.txt").symlink_to(home / "notes.txt")
    Image.new("RGB", (8, 8), "red").save(home / "mine.png")
    shutil.copytree(PACKAGED / "tiny", home / "model")
    (project / "code.zip").write_bytes(b"code")
    return project


def write(place: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


SHA256 = hashlib.sha256(b"code").hexdigest()
RUNTIME = {"conf/runtime/evil.yaml": "defaults: [python, _self_]\npython: tools/python\n"}
LAUNCH = {
    "conf/launch/evil.yaml": f"defaults: [local, _self_]\ncompile_artifact: {{load: code.zip, sha256: '{SHA256}'}}\n"
}
KERNEL = {
    "conf/attention/evil.yaml": "defaults: [flash2_hub, _self_]\n"
    f"hub: {{repository: evil/kernel, revision: '{COMMIT}', trust_remote_code: true}}\n"
}
TRUSTED = {
    "conf/attention/evil.yaml": "defaults: [flash2_hub, _self_]\n"
    f"hub: {{revision: '{COMMIT}', trust_remote_code: true}}\n"
}
MODEL = {"conf/model/evil.yaml": "defaults: [local, _self_]\nname: evil\npath: ../home/model\n"}


def overlay(text: str) -> dict[str, str]:
    return {"conf/recipe/evil.yaml": text}


def chosen(group: str) -> dict[str, str]:
    return overlay(f"defaults: [{{override /{group}: evil}}]\n")


def sweep(text: str) -> dict[str, str]:
    return {"conf/sweep/evil.yaml": text}


ARTIFACT_AXES = f"launch.compile_artifact.load: [code.zip], launch.compile_artifact.sha256: ['{SHA256}']"
KERNEL_RULE = f"attention.hub.revision: '{COMMIT}', attention.hub.trust_remote_code: true"
SWEPT = ["-m", "sweep=evil"]
# files, the words that use them, what the message names: the file and the keys
CASES: dict[str, tuple[dict[str, str], list[str], list[str]]] = {
    "interpreter, option": (RUNTIME, [*CPU, "runtime=evil"], ["conf/runtime/evil.yaml", "runtime.python=tools/python"]),
    "interpreter, overlay": (RUNTIME | chosen("runtime"), [*CPU, "recipe=evil"], ["conf/runtime/evil.yaml"]),
    "interpreter, matrix": (
        sweep("axes: {runtime.python: [tools/python]}"),
        [*CPU, *SWEPT, "runtime=python"],
        ["conf/sweep/evil.yaml", "runtime.python=tools/python"],
    ),
    "interpreter, option of a matrix": (
        RUNTIME | sweep("axes: {runtime: [evil]}"),
        [*CPU, *SWEPT],
        ["conf/runtime/evil.yaml", "runtime.python=tools/python"],
    ),
    "artifact, option": (LAUNCH, [*CPU, "launch=evil"], ["conf/launch/evil.yaml", "launch.compile_artifact.load"]),
    "artifact, overlay": (LAUNCH | chosen("launch"), [*CPU, "recipe=evil"], ["launch.compile_artifact.sha256"]),
    "artifact, matrix": (
        sweep(f"axes: {{{ARTIFACT_AXES}}}"),
        [*CPU, *SWEPT],
        ["conf/sweep/evil.yaml", "launch.compile_artifact.load"],
    ),
    "artifact, the hash alone is typed": (
        LAUNCH,
        [*CPU, "launch=evil", f'launch.compile_artifact.sha256="{SHA256}"'],
        ["launch.compile_artifact.load"],
    ),
    "kernel, option": (KERNEL, [*GPU, "attention=evil"], ["conf/attention/evil.yaml", "repository=evil/kernel"]),
    "kernel, overlay": (KERNEL | chosen("attention"), [*GPU, "recipe=evil"], ["attention.hub.trust_remote_code=true"]),
    "kernel of a known repository": (TRUSTED, [*GPU, "attention=evil"], [f"attention.hub.revision={COMMIT}"]),
    "kernel, the commit alone is not typed": (
        TRUSTED,
        [*GPU, "attention=evil", "attention.hub.trust_remote_code=true"],
        [f"attention.hub.revision={COMMIT}"],
    ),
    "kernel, amendment": (
        sweep(f"axes: {{attention: [flash2_hub]}}\namend: [{{where: {{compile: none}}, choose: {{{KERNEL_RULE}}}}}]"),
        [*GPU, *SWEPT],
        ["conf/sweep/evil.yaml", f"attention.hub.revision={COMMIT}"],
    ),
    "prompts of home, overlay": (
        overlay("workload: {prompts_file: ~/.netrc}"),
        [*CPU, "recipe=evil"],
        ["conf/recipe/evil.yaml", "workload.prompts_file=~/.netrc"],
    ),
    "prompts above, option": (
        {"conf/workload/evil.yaml": "defaults: [auto, _self_]\nprompts_file: ../home/notes.txt\n"},
        [*CPU, "workload=evil"],
        ["conf/workload/evil.yaml", "workload.prompts_file=../home/notes.txt"],
    ),
    "prompts behind a link, matrix": (
        sweep("axes: {workload.prompts_file: [link.txt]}"),
        [*CPU, *SWEPT],
        ["conf/sweep/evil.yaml", "workload.prompts_file=link.txt"],
    ),
    "prompts of a hidden file": (
        overlay("workload: {prompts_file: .env}"),
        [*CPU, "recipe=evil"],
        ["prompts_file=.env"],
    ),
    "picture, overlay": (
        overlay("workload: {image: ~/mine.png}"),
        [*IMG2IMG, "recipe=evil"],
        ["conf/recipe/evil.yaml", "workload.image=~/mine.png"],
    ),
    "picture, mapping in an option": (
        {"conf/workload/evil.yaml": "defaults: [img2img, _self_]\nimage: {path: ~/mine.png, content: null}\n"},
        ["model=sd15", "model.weights=tiny", *CPU, "workload=evil"],
        ["conf/workload/evil.yaml", "workload.image.path=~/mine.png"],
    ),
    "picture, row of a matrix": (
        sweep("zip: [{workload.mask: ../home/mine.png, workload: inpaint}]"),
        ["model=sd15", "model.weights=tiny", *CPU, *SWEPT],
        ["conf/sweep/evil.yaml", "workload.mask=../home/mine.png"],
    ),
    "lora, option": (
        {"conf/lora/evil.yaml": "defaults: [fused, _self_]\npath: ../home/lora.safetensors\n"},
        [*CPU, "lora=evil"],
        ["conf/lora/evil.yaml", "lora.path=../home/lora.safetensors"],
    ),
    "model, option": (MODEL, [*CPU, "model=evil"], ["conf/model/evil.yaml", "model.path=../home/model"]),
    "model, overlay": (MODEL | chosen("model"), [*CPU, "recipe=evil"], ["model.path=../home/model"]),
    "study, matrix": (
        sweep("axes: {study: [../home/study]}"),
        [*CPU, *SWEPT],
        ["conf/sweep/evil.yaml", "study=../home/study"],
    ),
}


def words_of(message: str) -> list[str]:
    """The words that a message says to type."""
    (found,) = re.findall(
        r"To allow it, add to the command: (.*?)(?:, or, if the whole folder is yours: .*)?\.$", message
    )
    return shlex.split(found)


def refused(cli: Cli, place: Path, verb: str, words: list[str], said: list[str]) -> str:
    before = sorted(place.iterdir())
    code, out, err = cli(verb, *words)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, "one paragraph"
    assert SECRET not in err
    for part in said:
        assert part in err
    assert sorted(place.iterdir()) == before, "nothing is written"
    assert not (place.parent / "started").exists(), "nothing is started"
    return err.strip()


@pytest.fixture
def lora(place: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    down = {"unet.a.lora_A.weight": np.zeros((2, 4), np.float32), "unet.a.lora_B.weight": np.zeros((4, 2), np.float32)}
    save_file(down, place.parent / "home" / "lora.safetensors")


@pytest.mark.usefixtures("lora")
@pytest.mark.parametrize("name", first_ones(CASES, 8))
def test_what_a_config_folder_names_takes_consent(cli: Cli, place: Path, name: str) -> None:
    files, words, said = CASES[name]
    write(place, files)
    for verb in ("run", "plan") if "-m" in words else ("run", "show"):
        message = refused(cli, place, verb, words, said)
    assert message.endswith("or, if the whole folder is yours: --trust-config-dir conf.")
    code, out, err = cli("plan", *words, *words_of(message))
    assert code == 0, err
    assert not out.startswith("refused")
    code, out, err = cli("plan", *words, "--trust-config-dir", "conf")
    assert code == 0, err
    assert not (place.parent / "started").exists(), "a plan starts nothing"


def test_another_folder_counts_as_the_one_here(cli: Cli, place: Path) -> None:
    write(place, {name.replace("conf", "more/conf"): text for name, text in RUNTIME.items()})
    words = [*CPU, "runtime=evil", "--config-dir", "more/conf"]
    message = refused(cli, place, "run", words, ["more/conf/runtime/evil.yaml", "--trust-config-dir more/conf"])
    assert cli("plan", *words, *words_of(message))[0] == 0
    with pytest.raises(UsageError, match=r"more/conf/runtime/evil\.yaml names runtime\.python"):
        diffopt.load(overrides=[*CPU, "runtime=evil"], config_dirs=["more/conf"])
    with pytest.raises(UsageError, match="runtime=evil is another Python"):  # which it may name, and nobody starts
        diffopt.load(overrides=[*CPU, "runtime=evil"], trust_config_dirs=["more/conf"])
    with pytest.raises(UsageError, match="runtime=evil is another Python"):
        diffopt.load(overrides=[*CPU, "runtime=evil", "runtime.python=/x"], config_dirs=["more/conf"])


def test_trust_is_for_one_folder_alone(cli: Cli, place: Path) -> None:
    write(place, RUNTIME | {"../home/conf/runtime/own.yaml": "defaults: [python, _self_]\npython: bin/python\n"})
    own = ["--trust-config-dir", "../home/conf"]
    refused(cli, place, "run", [*CPU, "runtime=evil", *own], ["conf/runtime/evil.yaml"])
    code, out, err = cli("show", *CPU, "runtime=own", *own)
    assert code == 0, err
    path = place.parent / "home" / "bin" / "python"
    assert yaml.safe_load(out)["runtime"]["python"] == str(path), "its paths count from beside it, not from here"


def test_a_strangers_sibling_does_not_stand_for_the_users_own(cli: Cli, place: Path) -> None:
    write(place, RUNTIME | {"../home/conf/runtime/own.yaml": "defaults: [evil, _self_]\n"})
    words = [*CPU, "runtime=own", "--trust-config-dir", "../home/conf"]
    refused(cli, place, "run", words, ["conf/runtime/evil.yaml", "runtime.python=tools/python"])


def test_consent_is_what_lets_a_program_start(cli: Cli, place: Path) -> None:
    write(place, RUNTIME)
    code, _, err = cli("run", *CPU, "runtime=evil", "--trust-config-dir", "conf")
    assert code == 2
    assert "is no Python" in err
    assert (place.parent / "started").exists()


def recipe_file(cli: Cli, place: Path, words: list[str], change: Callable[[dict[str, Any]], object]) -> list[str]:
    code, text, err = cli("show", *words)
    assert code == 0, err
    change(data := yaml.safe_load(text))
    (place / "stranger").mkdir(exist_ok=True)
    (place / "stranger" / "evil.yaml").write_text(yaml.safe_dump(data))
    return ["--recipe", "stranger/evil.yaml"]


LOCKS: dict[str, tuple[list[str], Callable[[dict[str, Any]], object], str]] = {
    "interpreter": (
        CPU,
        lambda d: (
            d.update(runtime={"name": "evil", "python": "tools/python"}),
            d["choices"].update(runtime="python"),
        ),
        "runtime.python=tools/python",
    ),
    "kernel": (
        [*GPU, "attention=flash2_hub"],
        lambda d: d["recipe"]["attention"]["hub"].update(
            repository="evil/kernel", revision=COMMIT, trust_remote_code=True
        ),
        "attention.hub.repository=evil/kernel",
    ),
    "kernel of a known repository": (
        [*GPU, "attention=flash2_hub"],
        lambda d: d["recipe"]["attention"]["hub"].update(revision=COMMIT, trust_remote_code=True),
        "attention.hub.trust_remote_code=true",
    ),
    "repository alone": (
        [*GPU, "attention=flash2_hub"],
        lambda d: d["recipe"]["attention"]["hub"].update(repository="evil/kernel"),
        "attention.hub.repository=evil/kernel",
    ),
    "picture": (
        IMG2IMG,
        lambda d: d["workload"]["image"].update(path="~/mine.png", content=None),
        "workload.image.path=~/mine.png",
    ),
    "picture above": (
        IMG2IMG,
        lambda d: d["workload"]["image"].update(path="../home/mine.png", content=None),
        "workload.image.path=../home/mine.png",
    ),
    "lora": (
        [*CPU, "lora=fused"],
        lambda d: d["recipe"]["lora"].update(path="~/lora.safetensors"),
        "lora.path=~/lora.safetensors",
    ),
    "model": (
        [*CPU, "model=local", "model.path=../home/model"],
        lambda d: d["recipe"]["model"].update(path="../home/model"),
        "model.path=../home/model",
    ),
}


@pytest.mark.usefixtures("lora")
@pytest.mark.parametrize("name", LOCKS)
def test_what_a_recipe_file_names_takes_consent(cli: Cli, place: Path, name: str) -> None:
    asked, change, said = LOCKS[name]
    words = recipe_file(cli, place, asked, change)
    for verb in ("run", "show"):
        message = refused(cli, place, verb, words, ["stranger/evil.yaml names", said])
    refused(cli, place, "run", [*words, "--trust-config-dir", "stranger"], [said])  # it is no option
    code, _, err = cli("plan", *words, *words_of(message))
    assert code == 0, err
    with pytest.raises(UsageError, match="names"):
        diffopt.load("stranger/evil.yaml")


def test_a_later_stage_of_a_recipe_file_is_bound_too(cli: Cli, place: Path) -> None:
    words = recipe_file(
        cli,
        place,
        [*CPU, "model=deepfloyd_if", "model.weights=tiny"],
        lambda d: d["recipe"]["model"]["cascade"][0].update(path=str(place.parent / "home" / "model")),
    )
    message = refused(cli, place, "run", words, ["stranger/evil.yaml names model.cascade="])
    assert words_of(message) == ["model=deepfloyd_if"]
    assert cli("plan", *words, *words_of(message))[0] == 0


def test_a_later_stage_that_an_option_names_is_bound_too(cli: Cli, place: Path) -> None:
    write(place, MODEL | {"conf/model/two.yaml": "defaults: [deepfloyd_if, _self_]\ncascade: [evil]\n"})
    refused(cli, place, "run", [*CPU, "model=two"], ["conf/model/evil.yaml", "model.path=../home/model"])


def test_listing_options_reads_nothing_of_the_users(cli: Cli, place: Path) -> None:
    write(place, RUNTIME | KERNEL | MODEL)
    for group in ("runtime", "attention", "model"):
        code, out, err = cli("ls", group)
        assert code == 0, err
        line = next(line for line in out.splitlines() if line.startswith("evil"))
        assert group == "runtime" or "broken" in line
    assert not (place.parent / "started").exists()


def test_files_below_are_free_to_name(cli: Cli, place: Path) -> None:
    (place / "prompts").mkdir()
    (place / "prompts" / "p.txt").write_text("a cat\n")
    (place / "prompts" / "link.txt").symlink_to("p.txt")
    shutil.copytree(PACKAGED / "tiny", place / "pipelines" / "mine")
    write(place, overlay("workload: {prompts_file: prompts/link.txt}"))
    write(place, {"conf/model/mine.yaml": "defaults: [local, _self_]\nname: mine\npath: pipelines/mine\n"})
    code, out, err = cli("show", *CPU, "recipe=evil", "model=mine")
    assert code == 0, err
    assert yaml.safe_load(out)["workload"]["prompts"] == ["a cat"]
    (place / "pipelines" / "mine" / "unet" / "config.json").unlink()
    (place / "pipelines" / "mine" / "unet" / "config.json").symlink_to("/etc/hostname")
    refused(cli, place, "run", [*CPU, "model=mine"], ["unet/config.json is a link that leads out of it"])


def test_what_is_not_there_says_what_to_type(cli: Cli, place: Path) -> None:
    write(place, overlay("workload: {prompts_file: p.txt}"))
    message = refused(cli, place, "run", [*CPU, "recipe=evil"], ["there is no such file"])
    assert words_of(message) == ["workload.prompts_file=p.txt"]


# The author's own recipe file.


@pytest.mark.usefixtures("lora")
def test_a_shown_recipe_reads_back_where_it_was_written(cli: Cli, place: Path) -> None:
    shutil.copy(place.parent / "home" / "mine.png", place / "mine.png")
    shutil.copytree(PACKAGED / "tiny", place / "pipelines" / "mine")
    words = [*CPU, "model=local", "model.path=pipelines/mine", "workload=img2img", "workload.image=mine.png"]
    code, text, err = cli("show", *words)
    assert code == 0, err
    assert str(place) not in text, "it can be given away"
    (place / "own.yaml").write_text(text)
    (asked,), (read,) = compose_requests(words), compose_requests([], lock=place / "own.yaml")
    assert read.cell == asked.cell
    assert cli("show", "--recipe", "own.yaml")[1] == text
    (place / "deeper").mkdir()
    (place / "own.yaml").rename(place / "deeper" / "own.yaml")
    read_back = ["--recipe", "deeper/own.yaml"]
    typed: list[str] = []
    for _ in range(2):  # one file at a time
        typed += words_of(refused(cli, place, "plan", [*read_back, *typed], ["deeper/own.yaml", "no such file"]))
    assert set(typed) == {"model.path=./pipelines/mine", "workload.image.path=./mine.png"}
    (moved,) = compose_requests(typed, lock=Path("deeper/own.yaml"))
    assert moved.cell.id == asked.cell.id


def test_a_shown_recipe_says_what_its_reader_types(cli: Cli, place: Path) -> None:
    kernel = ["attention=flash2_hub", f'attention.hub.revision="{COMMIT}"', "attention.hub.trust_remote_code=true"]
    words = [
        "hardware=a100",
        "precision=fp16",
        "model=sd15",
        "model.weights=tiny",
        "workload=img2img",
        "workload.image=../home/mine.png",
    ]
    words += ["runtime=python", "runtime.python=tools/python", *kernel]
    code, text, err = cli("show", *words)
    assert code == 0, err
    (place / "own.yaml").write_text(text)
    (command,) = re.findall(r"^# Read it back with: diffopt run --recipe THIS_FILE (.*)$", text, re.MULTILINE)
    (asked,), (read,) = compose_requests(words), compose_requests(shlex.split(command), lock=place / "own.yaml")
    assert read.cell == asked.cell


# What a plan tells.


def test_a_plan_tells_all_code_that_would_run(cli: Cli, place: Path) -> None:
    write(place, RUNTIME | LAUNCH | TRUSTED)
    words = [*GPU, "runtime=evil", "launch=evil", "attention=evil", "--trust-config-dir", "conf"]
    code, out, err = cli("plan", *words)
    assert code == 0, err
    told = [line.removeprefix("runs: ") for line in out.splitlines() if line.startswith("runs: ")]
    assert told == [
        f"interpreter {place}/tools/python (runtime=evil)",
        f"artifact {place}/code.zip, SHA-256 {SHA256} (launch.compile_artifact)",
        f"kernel https://huggingface.co/kernels-community/flash-attn2@{COMMIT} (attention=evil)",
    ]
    (cell,) = json.loads(cli("plan", *words, "--json")[1])["cells"]
    assert [code["kind"] for code in cell["code"]] == ["interpreter", "artifact", "kernel"]
    assert cell["code"][0] == {"kind": "interpreter", "source": f"{place}/tools/python", "by": "runtime=evil"}
    swept = cli("plan", "-m", *words, "workload.batch_size=1,2")[1]
    assert [line for line in swept.splitlines() if line.startswith("runs: ")] == [f"runs: {line}" for line in told]
    assert "runs: " not in cli("plan", *CPU)[1]
    assert not (place.parent / "started").exists()


def test_the_known_repositories_are_those_of_the_shipped_options() -> None:
    assert "kernels-community/flash-attn2" in shipped_kernel_repositories()
    assert all("/" in repository for repository in shipped_kernel_repositories())


def test_a_backend_of_the_hub_says_which_kernel(cli: Cli, place: Path) -> None:
    """diffusers would fetch one by itself, without a commit and without consent."""
    write(place, {"conf/attention/evil.yaml": "defaults: [flash2, _self_]\nbackend: flash_hub\n"})
    code, out, err = cli("plan", *GPU, "attention=evil")
    assert (code, out) == (2, "")
    assert "attention.backend=flash_hub" in err
    assert "attention.hub says" in err


def test_a_plan_tells_the_package_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffopt.config import loaded_code

    (request,) = compose_requests(["hardware=cpu", "quant=int8_weight"])
    step = request.cell.recipe.quant
    monkeypatch.setattr(type(step), "__module__", "pytest_steps")
    monkeypatch.setattr(
        loaded_code, "packages_of_foreign_steps", lambda steps: ("pytest",) if [*steps] == [step] else ()
    )
    (code,) = loaded_code.loaded_code(request)
    assert (code.kind, code.source, code.by) == ("package", f"pytest {pytest.__version__}", "quant=int8_weight")
