"""A stranger's whole folder: what lies in it starts nothing, and nothing outside of it is read, whatever is asked.

Those attacks that are of one kind stand in files of their own: consent in tests/config/test_consent.py, links of a
study in tests/results/test_strangers_study.py, git in tests/machine/test_git.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from support.processes import use_stub
from support.slow import first_ones

from diffopt.errors import Refusal
from diffopt.machine.process import Child
from diffopt.models.resolve import PACKAGED
from diffopt.results.study import Study

Cli = Callable[..., tuple[int, str, str]]
Write = Callable[[Path], None]

SECRET = "hunter2"
CPU = ["hardware=cpu", "measure=quick"]
OUTSIDE: set[str] = set()  # what was opened below the folders that are watched
WATCHED: list[str] = []
EVENTS = ("open", "os.listdir", "os.scandir", "import")


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if (
        WATCHED
        and event in ("open", "os.listdir", "os.scandir", "import")
        and args
        and isinstance(args[0], str | bytes)
    ):
        name = os.fsdecode(args[0])
        if "canary" in name if event == "import" else os.path.realpath(name).startswith(WATCHED[0]):
            OUTSIDE.add(f"{event} {name}")


sys.addaudithook(_watch)  # stays as long as the process, and looks at nothing once WATCHED is empty


@pytest.fixture
def place(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stranger's folder, where the commands are given; beside it the user's home, of which every opening counts."""
    project, home = tmp_path / "project", tmp_path / "home"
    (project / "conf").mkdir(parents=True)
    (home / "canary.d").mkdir(parents=True)
    program = f"#!/bin/sh\ntouch {tmp_path}/started\n"
    for path in (project / "canary", home / "canary", project / "gs", project / "latex"):
        path.write_text(program)
        path.chmod(0o755)
    (home / "evil.yaml").write_text(f"defaults: [regional, _self_]\nmode: {SECRET}\n")
    (home / "notes.txt").write_text(SECRET)
    save_file({SECRET: np.zeros(2, np.float32)}, home / "canary.d" / "model.safetensors")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CANARY", SECRET)
    monkeypatch.setenv("PATH", str(project), prepend=os.pathsep)
    monkeypatch.chdir(project)
    OUTSIDE.clear()
    WATCHED.append(str(home))
    yield project
    WATCHED.clear()


def text(name: str, content: str) -> Write:
    def write(project: Path) -> None:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)

    return write


def link(name: str, target: str) -> Write:
    def write(project: Path) -> None:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).symlink_to(target.format(home=project.parent / "home"))

    return write


def recipe(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(project: Path) -> None:
        data = yaml.safe_load(RECIPE)
        change(data)
        (project / "evil.yaml").write_text(yaml.safe_dump(data))

    return write


def model(change: Callable[[Path], Any]) -> Write:
    """The folder ``mine``, a pipeline with weights, and an option that names it."""

    def write(project: Path) -> None:
        shutil.copytree(PACKAGED / "tiny", project / "mine")
        text("conf/model/mine.yaml", "defaults: [local, _self_]\nname: mine\npath: mine\n")(project)
        change(project / "mine")

    return write


def said(path: str, **values: Any) -> Callable[[Path], None]:
    """Values put into a JSON file of a model."""

    def change(folder: Path) -> None:
        data = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps(data | values))

    return change


class Bomb:
    """What runs the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("./canary",)


def pickled(*names: str, instead: bool = False) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(pickle.dumps(Bomb()))
            if not instead:
                for file in (folder / name).parent.glob("*.safetensors"):
                    file.unlink()

    return change


def shards(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "../../../home/canary.d/model.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def adapter(folder: Path) -> None:
    (folder / "text_encoder/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/"}))
    (folder / "text_encoder/adapter_model.bin").write_bytes(pickle.dumps(Bomb()))


def picture(content: bytes) -> Write:
    def write(project: Path) -> None:
        (project / "a.png").write_bytes(content)
        text("conf/recipe/evil.yaml", "workload: {image: a.png}\n")(project)

    return write


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HUGE = (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\n%%EOF\n"
IMAGE = ["model=sd15", "model.weights=tiny", "workload=img2img", *CPU, "recipe=evil"]
CHOSEN, OVERLAY, SWEPT = [*CPU, "compile=evil"], [*CPU, "recipe=evil"], [*CPU, "-m", "sweep=evil"]
MINE, READ = [*CPU, "model=mine"], ["--recipe", "evil.yaml"]
OPTION = "conf/compile/evil.yaml"
# what makes it, the words that use it, and what the one paragraph of the refusal says
REFUSED: dict[str, tuple[Write, list[str], str]] = {
    # links of a config folder, and what a model's configs name
    "an option that is a link": (link(OPTION, "{home}/evil.yaml"), CHOSEN, "is a link that leads elsewhere"),
    "a group that is a link": (link("conf/compile", "{home}"), CHOSEN, "has no option 'evil'"),
    "a matrix that is a link": (link("conf/sweep/evil.yaml", "{home}/evil.yaml"), SWEPT, "no option 'evil'"),
    "an overlay that is a link": (link("conf/recipe/evil.yaml", "{home}/evil.yaml"), OVERLAY, "leads elsewhere"),
    "a kernel that a config names": (
        model(said("text_encoder/config.json", attn_implementation="evil/kernel@0123")),
        MINE,
        "download from the hub and run",
    ),
    "a kernel that is known": (
        model(said("text_encoder/config.json", text_config={"_attn_implementation": "flash_attention_2"})),
        MINE,
        "download from the hub and run",
    ),
    "an adapter beside a part": (model(adapter), MINE, "also from a pickle"),
    # what YAML and Hydra can do
    "a tag of Python": (text(OPTION, "!!python/object/apply:os.system ['./canary']\n"), CHOSEN, "could not determine"),
    "aliases that double": (text(OPTION, "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"), CHOSEN, "not an alias"),
    "a target of Hydra": (text(OPTION, "_target_: os.system\n_args_: [./canary]\n"), CHOSEN, "names code"),
    "a variable of the environment": (text(OPTION, "kind: ${oc.env:CANARY}\n"), CHOSEN, "is an interpolation"),
    "a launcher of Hydra": (text(OPTION, "defaults: [/hydra/launcher: evil]\n"), CHOSEN, "is not allowed"),
    "a search path of Hydra": (text(OPTION, "hydra: {searchpath: [file://../home]}\n"), CHOSEN, "configures Hydra"),
    "a package for the whole": (text(OPTION, "# @package _global_\nstudy: /tmp\n"), CHOSEN, "remove the line"),
    # what lies elsewhere
    "a sibling elsewhere": (text(OPTION, "defaults: [../../../home/evil]\n"), CHOSEN, "is not allowed"),
    "an overlay elsewhere": (
        text("conf/recipe/evil.yaml", "defaults: [{override /compile: ../../../home/evil}]\n"),
        OVERLAY,
        "is not allowed",
    ),
    "a choice elsewhere": (
        text("conf/sweep/evil.yaml", "axes: {compile: [../../../home/evil]}\n"),
        SWEPT,
        "has no option '../../../home/evil'",
    ),
    "the environment as prompts": (
        text("conf/recipe/evil.yaml", "workload: {prompts_file: /proc/self/environ}\n"),
        OVERLAY,
        "which was not opened",
    ),
    "the whole disk as a model": (
        text("conf/model/mine.yaml", "defaults: [local, _self_]\nname: mine\npath: /\n"),
        MINE,
        "which was not opened",
    ),
    "results above": (text("conf/sweep/evil.yaml", "axes: {study: ['..']}\n"), SWEPT, "a study's name has"),
    "results at a path": (text("conf/sweep/evil.yaml", "axes: {study: [a/../../b]}\n"), SWEPT, "a path, and only"),
    # a recipe file
    "a choice of a recipe file elsewhere": (
        recipe(lambda d: d["choices"].update(compile="../../../home/evil")),
        READ,
        "there is no option",
    ),
    "settings of Hydra in a recipe file": (recipe(lambda d: d.update(hydra={"run": {"dir": "/"}})), READ, "no others"),
    "an artifact in a recipe file": (
        recipe(lambda d: d.update(launch={"compile_artifact": {"load": "canary"}})),
        READ,
        "no others",
    ),
    "a target in a recipe file": (recipe(lambda d: d["recipe"]["fuse"].update(_target_="os.system")), READ, "_target_"),
    "a kind that is a function": (recipe(lambda d: d["recipe"]["fuse"].update(kind="os.system")), READ, "no such kind"),
    "an architecture elsewhere": (
        recipe(lambda d: d["recipe"]["model"].update(architecture="../../../../home")),
        READ,
        "there is no such architecture",
    ),
    "a compiler of one's own": (
        text(OPTION, "defaults: [default, _self_]\noptions: {cpp.cxx: ./canary}\n"),
        CHOSEN,
        "cpp.cxx",
    ),
    "a backend of one's own": (text(OPTION, "defaults: [default, _self_]\nbackend: canary:run\n"), CHOSEN, "backend"),
    # a model's folder
    "a pipeline of one's own": (model(said("model_index.json", _class_name=["canary", "P"])), MINE, "custom pipeline"),
    "a function of the system": (model(said("model_index.json", unet=["os", "system"])), MINE, "custom code"),
    "a function of Python": (model(said("model_index.json", unet=["builtins", "eval"])), MINE, "custom code"),
    "a module in the folder": (model(said("model_index.json", unet=["canary", "Unet"])), MINE, "custom code"),
    "a part above": (
        model(said("model_index.json", **{"../canary": ["diffusers", "VAE"]})),
        MINE,
        "cannot be the name",
    ),
    "shards elsewhere": (model(shards), MINE, "files beside it"),
    "weights that are a pickle": (model(pickled("unet/diffusion_pytorch_model.bin")), MINE, "only as a pickle"),
    "a pickle called safetensors": (
        model(pickled("unet/diffusion_pytorch_model.safetensors", instead=True)),
        MINE,
        "is not a safetensors file",
    ),
    "a LoRA that is a pickle": (
        lambda p: (pickled("a.safetensors", instead=True)(p), text("conf/lora/evil.yaml", LORA)(p))[0],
        [*CPU, "lora=evil"],
        "cannot be read as safetensors",
    ),
    # pictures
    "a picture for Ghostscript": (picture(POSTSCRIPT), IMAGE, "is not a picture in PNG"),
    "a picture that is a program": (picture(b"<svg onload='x'/>"), IMAGE, "is not a picture in PNG"),
    "a picture of 3.6 gigapixels": (picture(HUGE), IMAGE, "is too large"),
}
LORA = "defaults: [fused, _self_]\npath: a.safetensors\n"
RECIPE = ""


@pytest.fixture(autouse=True)
def shown(cli: Cli) -> None:
    """A recipe file as somebody makes one."""
    global RECIPE
    RECIPE = RECIPE or cli("show", *CPU)[1]


def nothing_happened(place: Path, *outputs: str) -> None:
    assert not (place.parent / "started").exists(), "a program of the stranger's was started"
    assert set() == OUTSIDE, "something outside was read"
    for output in outputs:
        assert SECRET not in output
        assert "Traceback" not in output


@pytest.mark.parametrize("name", first_ones(REFUSED, 8))
def test_what_a_stranger_wrote_is_refused_in_words(cli: Cli, place: Path, name: str) -> None:
    write, words, message = REFUSED[name]
    write(place)
    before = sorted(place.iterdir())
    code, out, err = cli("run", *words)
    nothing_happened(place, out, err)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert sorted(place.iterdir()) == before, "nothing is written"


def test_a_trusted_folder_may_be_links(cli: Cli, place: Path) -> None:
    link("conf/compile/mine.yaml", "{home}/mine.yaml")(place)
    (place.parent / "home/mine.yaml").write_text("defaults: [regional, _self_]\nmode: max-autotune-no-cudagraphs\n")
    code, out, err = cli("show", *CPU, "compile=mine", "--trust-config-dir", "conf")
    assert (code, err) == (0, "")
    assert "max-autotune-no-cudagraphs" in out


def test_what_is_not_read_is_named_and_its_folder_not_searched(cli: Cli, place: Path) -> None:
    """A link to the whole disk would be walked for ever."""
    link("conf/compile/evil.yaml", "{home}/evil.yaml")(place)
    link("conf/quant", "/")(place)
    link("conf/kompile", "/")(place)
    code, out, err = cli("ls", "compile")
    nothing_happened(place, out, err)
    assert code == 0
    assert "evil" not in out
    assert "compile/evil.yaml: it is a link that leads elsewhere" in err
    assert "quant: it is a link that leads elsewhere" in err


# What is data, and stays so: the command does what it says, and the file is not obeyed.

POINTED = {
    "auto_map": {"AutoModel": "canary.Canary", "AutoTokenizer": ["canary.Canary", None]},
    "_name_or_path": "/canary.d",
    "custom_code": "canary.py",
}
TOKENIZER = POINTED | {
    "tokenizer_class": "Canary",
    "chat_template": "{{ cycler.__init__.__globals__.os.system('./canary') }}",
    **{f"{name}_file": "/home/canary.d/notes.txt" for name in ("vocab", "merges", "tokenizer", "special_tokens_map")},
}


def pointing(folder: Path) -> None:
    """A pipeline that loads, with code and pickles beside every part, and all keys that could lead to them."""
    home = folder.parent.parent / "home"
    for part in ("unet", "vae", "text_encoder"):
        said(f"{part}/config.json", **POINTED, base_model_name_or_path=str(home / "canary.d"))(folder)
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
            (folder / part / name).write_bytes(pickle.dumps(Bomb()))
    said("tokenizer/tokenizer_config.json", **TOKENIZER)(folder)
    said("scheduler/scheduler_config.json", _class_name="Canary")(folder)
    said("model_index.json", trust_remote_code=True, _name_or_path=str(home / "canary.d"))(folder)
    for name in (
        "pipeline.py",
        "canary.py",
        "unet/unet.py",
        "tokenizer/canary.py",
        "scheduler/Canary.py",
        "hubconf.py",
    ):
        (folder / name).write_text("import os; os.system('./canary')\n")
    (folder / "README.md").write_text("---\nprior: [evil/canary]\nbase_model: evil/canary\n---\n")


@pytest.mark.slow
def test_a_model_loads_without_the_code_beside_it(cli: Cli, place: Path) -> None:
    import torch

    from diffopt.config.resolve import compose_requests
    from diffopt.pipeline.load import load_pipeline

    model(pointing)(place)
    for weights in ("pretrained", "random"):
        (request,) = compose_requests([*MINE, f"model.weights={weights}"], folders=[place / "conf"])
        recipe = request.cell.recipe
        pipe = load_pipeline(recipe.model, "txt2img", device="cpu", dtype={"default": torch.float32})
        assert type(pipe).__name__ == "StableDiffusionPipeline"
        assert {type(part).__module__.split(".")[0] for part in pipe.components.values() if part is not None} == {
            "diffusers",
            "transformers",
        }
    nothing_happened(place)


@pytest.mark.slow
def test_a_lora_loads_without_the_module_that_its_header_names(place: Path) -> None:
    """peft's settings stand in the header, and two of them name a module."""
    import torch

    from diffopt.config.resolve import compose_requests
    from diffopt.pipeline.load import load_pipeline
    from diffopt.steps.lora.layers import load_lora_layers

    (request,) = compose_requests(CPU)
    pipe: Any = load_pipeline(request.cell.recipe.model, "txt2img", device="cpu", dtype={"default": torch.float32})
    layers = {path: one for path, one in pipe.unet.named_modules() if path.endswith("attn1.to_q")}
    layer, linear = next(iter(layers.items()))
    pair = {
        f"unet.{layer}.lora_A.weight": np.ones((2, linear.in_features), np.float32),
        f"unet.{layer}.lora_B.weight": np.ones((linear.out_features, 2), np.float32),
    }
    settings = {"unet.megatron_core": "canary.core", "unet.megatron_config": {"a": 1}, "unet.r": 2}
    save_file(pair, place / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    with suppress(Refusal):
        load_lora_layers(pipe, str(place / "a.safetensors"), None, kind="live", adapter="a")
    nothing_happened(place)


# What is in the working directory when a process starts.

LIBRARIES = ("torch", "diffusers", "transformers", "yaml", "hydra", "pydantic", "numpy", "PIL", "kernels", "ctypes")
OTHERS = ("sitecustomize", "usercustomize", "conftest", "hubconf", "hydra_plugins/canary", "diffopt_steps")


def shadowed(place: Path) -> None:
    """Modules by the names of what Python and the libraries import, and a distribution with entry points."""
    for name in (*LIBRARIES, *OTHERS):
        text(f"{name}.py", f"open({str(place.parent / 'started')!r}, 'a').write({name!r})\nraise SystemExit(3)\n")(
            place
        )
    text("canary.pth", "import os; os.system('./canary')\n")(place)
    text("evil-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")(place)
    text("evil-1.0.dist-info/entry_points.txt", "[diffopt.steps]\nevil = diffopt_steps\n")(place)
    text(".env", "DIFFOPT_CACHE_DIR=evil\nHF_HOME=evil\nPYTHONPATH=.\n")(place)
    text("pyproject.toml", "[tool.diffopt]\nruntime = './canary'\n")(place)
    text("matplotlibrc", "text.usetex: True\nbackend: module://canary\n")(place)


def called(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("start", ["script", "module"])
def test_modules_of_the_working_directory_are_no_libraries(place: Path, start: str) -> None:
    shadowed(place)
    first = [sys.executable, "-m", "diffopt"] if start == "module" else [str(Path(sys.executable).parent / "diffopt")]
    done = called(*first, "plan", *CPU)
    assert (done.returncode, done.stderr) == (0, "")
    nothing_happened(place, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["run", "compile=regional", "workload.steps=2"], ["check"], ["plan", "--deep"]])
def test_nor_are_they_for_what_a_command_starts(place: Path, words: list[str]) -> None:
    """Inductor tries what it compiled in a Python of its own."""
    shadowed(place)
    verb, *more = words
    chosen = ["model=sd15", "model.weights=tiny", "hardware=cpu", *([] if verb == "check" else ["measure=quick"])]
    done = called(str(Path(sys.executable).parent / "diffopt"), verb, *chosen, *more)
    assert done.returncode == 0, done.stderr
    nothing_happened(place, done.stdout, done.stderr)


DRAWN = """
from diffopt.results.published.charts import Bar, Chart, Panel, chart_to_figure
chart_to_figure(Chart("c", "t", "s", (Panel("p", (Bar("g", "s", 1.0, "1"),)),)))
import matplotlib
print(matplotlib.rcParams["text.usetex"])
"""


@pytest.mark.slow
def test_a_chart_is_drawn_without_what_the_working_directory_says_of_it(place: Path) -> None:
    shadowed(place)
    done = called(sys.executable, "-P", "-c", DRAWN)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    nothing_happened(place, done.stderr)


# What takes consent is named by a plan, exactly.


def test_a_plan_names_what_consent_would_start(cli: Cli, place: Path) -> None:
    digest = hashlib.sha256((place / "canary").read_bytes()).hexdigest()
    commit = "0123456789" * 4
    text("conf/runtime/evil.yaml", "defaults: [python, _self_]\npython: ./canary\n")(place)
    text(
        "conf/launch/evil.yaml",
        f"defaults: [local, _self_]\ncompile_artifact: {{load: canary, sha256: '{digest}'}}\n",
    )(place)
    text(
        "conf/attention/evil.yaml",
        f"defaults: [flash2_hub, _self_]\nhub: {{repository: evil/canary, revision: '{commit}', "
        "trust_remote_code: true}\n",
    )(place)
    gpu = ["hardware=a100", "precision=fp16"]
    expected = {
        "runtime": ("interpreter", f"{place}/canary"),
        "launch": ("artifact", f"{place}/canary, SHA-256 {digest}"),
        "attention": ("kernel", f"https://huggingface.co/evil/canary@{commit}"),
    }
    for group, named in expected.items():
        words = [*gpu, f"{group}=evil"]
        code, out, err = cli("plan", *words)
        assert (code, out) == (2, "")
        nothing_happened(place, err)
        typed = shlex.split(err.split("add to the command: ")[1].split(", or, if")[0])
        for consent in (typed, ["--trust-config-dir", "conf"]):
            code, out, err = cli("plan", *words, *consent, "--json")
            assert code == 0, err
            (cell,) = json.loads(out)["cells"]
            assert [(each["kind"], each["source"]) for each in cell["code"]] == [named]
            nothing_happened(place, out, err)
    model(pointing)(place)
    (cell,) = json.loads(cli("plan", *MINE, "--json")[1])["cells"]
    assert cell["code"] == [], "a model has none that is loaded"
    nothing_happened(place)


# A study.


def test_a_study_starts_nothing_and_leads_nowhere(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a run writes and reads lie there already, and the row says that another Python ran it."""
    use_stub(monkeypatch)
    words = ["run", *CPU, "workload.negative_prompt=ok", "study=s"]
    assert cli(*words)[0] == 0
    study = Study.open("s")
    (row,) = study.results()
    folder = study.folder(row.cell_id, row.env_id)
    evil = {"runtime": {"name": "evil", "python": str(place / "canary")}}
    (folder / "cell.yaml").write_text(yaml.safe_dump(row.cell | evil))
    (folder / "plan.json").write_text(json.dumps({"python": str(place / "canary")}))
    for name in ("outcome.json", "compile-cache.zip", "0.pkl", "sitecustomize.py"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    data = json.loads((folder / "result.json").read_text())
    data["cell"] |= evil
    data["artifacts"]["pictures"] = ["../../../../home/canary.d/model.safetensors"]
    (folder / "result.json").write_text(json.dumps(data))
    for asked in (
        ["report", "s", "--pictures", "sheet.png"],
        ["report", "s", "--csv"],
        ["compare", "s", "s"],
        words,
        [*words, "--force"],
    ):
        code, out, err = cli(*asked)
        assert code in (0, 1, 2), err
        nothing_happened(place, out, err)


def test_a_log_is_kept_as_it_was_printed(tmp_path: Path) -> None:
    said = "\x1b[31m\u202e\n"
    with open(tmp_path / "log.txt", "wb") as log:
        command = [sys.executable, "-P", "-X", "utf8", "-c", f"print({said!r}, end='')"]
        with Child(lambda _: command, log, os.environ) as child:
            child.await_exit(60)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == said
