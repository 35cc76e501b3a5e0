"""Models on the hub: facts before a download, prefetch, offline runs, and one paragraph for all that goes wrong.

The real command runs in processes of its own against a stand-in of the hub on 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.hub_stand_in import Hub, Repository, serve

from diffopt.models.resolve import PACKAGED

TINY = PACKAGED / "tiny"
TOKEN = "hf_aTokenThatNobodyMayRead"
COMMIT = "a" * 40
WEIGHTS = {"text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"}
Diffopt = Callable[..., subprocess.CompletedProcess[str]]


def safetensors(dtype: str = "F16", numbers: int = 4) -> bytes:
    """A file with one tensor of zeros."""
    size = {"F16": 2, "F32": 4}[dtype] * numbers
    header = json.dumps({"t": {"dtype": dtype, "shape": [numbers], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def renamed(repository: Repository, before: str, after: str) -> Repository:
    repository.files = {name.replace(before, after): content for name, content in repository.files.items()}
    return repository


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A good repository with things in it that are never fetched, and bad ones."""
    good = Repository.of_folder(TINY)
    good.files |= {f"{stem}.bin": b"a pickle" for stem in WEIGHTS}
    good.files |= {f"{stem}.non_ema.safetensors": b"unused" for stem in WEIGHTS}
    good.files |= {"README.md": b"# tiny", "safety_checker/config.json": b"{}", "unet/code.py": b"raise SystemExit(9)"}
    variant = Repository.of_folder(TINY)
    variant.files |= {f"{stem}.fp16.safetensors": safetensors(numbers=len(stem)) for stem in WEIGHTS}
    repositories = {
        "org/tiny": good,
        "org/variant": variant,
        "org/pickles": renamed(Repository.of_folder(TINY), ".safetensors", ".bin"),
        "org/gated": Repository.of_folder(TINY, gated=True),
        "org/short": Repository.of_folder(TINY, broken="short"),
        "org/spoiled": Repository.of_folder(TINY, broken="spoiled"),
        "org/malformed": Repository({**good.files, "model_index.json": b"{"}),
        "org/weights": Repository({"model.safetensors": safetensors()}),
        "org/control": Repository(
            {"config.json": b"{}", "diffusion_pytorch_model.safetensors": safetensors(numbers=7)}
        ),
    }
    with serve(repositories) as running:
        yield running


@pytest.fixture
def online(hub: Hub, diffopt: Diffopt, tmp_path: Path) -> Diffopt:
    """The command with the stand-in as its hub, a token, and a cache of its own."""
    env = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": TOKEN,
    }

    def call(*words: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
        done = diffopt(*words, env={**env, "HF_HUB_OFFLINE": str(int(offline))})
        for said in (done.stdout, done.stderr):
            assert TOKEN not in said
            assert "Traceback" not in said
        return done

    return call


def model_of(shown: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert shown.returncode == 0, shown.stderr
    data: dict[str, Any] = yaml.safe_load(shown.stdout)["recipe"]["model"]
    return data


def asked(model_id: str, *more: str) -> tuple[str, ...]:
    return ("model=hub", f"model.id={model_id}", "hardware=cpu", *more)


def test_facts_come_without_the_weights(hub: Hub, online: Diffopt) -> None:
    model = model_of(online("show", *asked("org/tiny")))
    assert (model["pipelines"]["txt2img"], model["denoiser"], model["dtype"]) == (
        "StableDiffusionPipeline",
        "unet",
        "float16",
    )
    assert model["parameters"] == {"denoiser": 2966120, "text_encoders": 406144, "vae": 453067}
    assert (model["licence"], model["gated"], model["content"]) == ("mit", False, None)
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert {Path(name).suffix for name in hub.fetched()} == {".json"}
    assert "tokenizer/tokenizer.json" not in hub.fetched()


def test_a_branch_is_shown_as_unpinned_and_a_commit_is_not(online: Diffopt) -> None:
    branch, commit = (online("show", *asked("org/tiny", f"model.revision={name}")) for name in ("main", COMMIT))
    assert "model.revision=main: not pinned to a commit" in branch.stdout
    assert model_of(branch)["revision"] == "main"
    assert "not pinned" not in commit.stdout
    assert model_of(commit)["revision"] == COMMIT


FAILURES = {
    ("org/none",): (2, "org/none (revision main) is not on the hub, or is private"),
    ("org/tiny", "model.revision=v9"): (2, "org/tiny (revision v9): the hub has no such revision of it"),
    ("org/gated",): (1, "org/gated (revision main) is gated on the hub: accept its terms"),
    ("org/pickles",): (2, "org/pickles/text_encoder has its weights only as a pickle, model.bin"),
    ("org/malformed",): (2, "org/malformed/model_index.json is not JSON"),
    ("org/weights",): (2, "org/weights (revision main) has no model_index.json, so it is not a diffusers pipeline"),
    ("org/tiny", "model.variant=bf16"): (2, "org/tiny has no files of the variant 'bf16'"),
    ("org/spoiled",): (2, "org/spoiled/text_encoder/model.safetensors is not a safetensors file"),
    ("'not an id'",): (2, "model.id: Repo id must use alphanumeric chars"),
}
# One process for all of them: starting Python takes longer than failing.
EACH = """
import contextlib, io, json, sys
from diffopt.cli.main import main
found = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


@pytest.mark.parametrize("verb", ["plan", "prefetch"])
def test_failures_are_one_paragraph(verb: str, hub: Hub, tmp_path: Path) -> None:
    lines = [[verb, *asked(*words)] for words in FAILURES]
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
    }
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(lines)], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert TOKEN not in done.stdout
    for (code, out, err), (expected, message) in zip(json.loads(done.stdout), FAILURES.values(), strict=True):
        assert (code, out) == (expected, "")
        assert message in err
        assert len(err.splitlines()) == 1


def test_a_broken_download_is_told_and_nothing_stays_of_it(hub: Hub, online: Diffopt) -> None:
    done = online("prefetch", *asked("org/short"))
    assert done.returncode == 1
    assert "org/short (revision main) cannot be downloaded: Consistency check failed" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    hub.repositories["org/short"].broken = None
    assert online("prefetch", *asked("org/short")).returncode == 0


def test_out_of_reach_and_not_in_the_cache(online: Diffopt, diffopt: Diffopt, tmp_path: Path) -> None:
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "other")}
    for done in (online("plan", *asked("org/tiny"), offline=True), diffopt("plan", *asked("org/tiny"), env=nobody)):
        assert done.returncode == 1
        assert "org/tiny (revision main) is not in this machine's cache and the hub cannot be reached" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_offline_with_configs_alone_asks_for_what_only_the_weights_tell(online: Diffopt) -> None:
    assert online("plan", *asked("org/tiny")).returncode == 0
    done = online("plan", *asked("org/tiny"), offline=True)
    assert done.returncode == 2
    assert "model.dtype cannot be read from the model's files; give the value" in done.stderr
    model = model_of(online("show", *asked("org/tiny", "model.dtype=float16"), offline=True))
    assert model["parameters"] == {"denoiser": None, "text_encoders": None, "vae": None}
    done = online("prefetch", *asked("org/tiny", "model.dtype=float16"), offline=True)
    assert done.returncode == 1
    assert "is not whole in this machine's cache" in done.stderr


def test_prefetch_takes_what_is_loaded_and_offline_the_recipe_is_the_same(hub: Hub, online: Diffopt) -> None:
    before = model_of(online("show", *asked("org/tiny")))
    done = online("prefetch", *asked("org/tiny"))
    assert done.returncode == 0
    needed = hub.fetched() - {"safety_checker/config.json"}  # small, and looked at before it is known to be left out
    size = sum(len(hub.repositories["org/tiny"].files[name]) for name in needed)
    assert done.stdout == f"org/tiny  revision main  commit {COMMIT}  {size} bytes\n"
    assert {name for name in hub.fetched() if name.endswith(".safetensors")} == {
        f"{stem}.safetensors" for stem in WEIGHTS
    }
    assert not [name for name in hub.fetched() if name.endswith((".bin", ".py", ".md"))]
    requests = len(hub.asked)
    again = online("prefetch", *asked("org/tiny"), offline=True)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    after = model_of(online("show", *asked("org/tiny"), offline=True))
    assert {**after, "licence": "mit", "gated": False} == before
    assert len(hub.asked) == requests


def test_only_the_variant_is_fetched(hub: Hub, online: Diffopt) -> None:
    assert online("prefetch", *asked("org/variant", "model.variant=fp16")).returncode == 0
    weights = {name for name in hub.fetched() if name.endswith(".safetensors")}
    assert weights == {f"{stem}.fp16.safetensors" for stem in WEIGHTS}


def test_a_controlnet_is_fetched_and_text_encoders_are_left(hub: Hub, online: Diffopt) -> None:
    words = ("model.controlnet={class_name: ControlNetModel, id: org/control, revision: null, variant: null}",)
    with_control = asked("org/tiny", "model.pipelines.controlnet=StableDiffusionControlNetPipeline", *words)
    model = model_of(online("show", *with_control))
    assert model["parameters"]["denoiser"] == 2966120 + 7
    hub.asked.clear()
    done = online("prefetch", *with_control, "model.embeddings={tokens: 2, width: 64}")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["org/tiny", "org/control"]
    assert "diffusion_pytorch_model.safetensors" in hub.fetched()
    assert not [
        name for name in hub.fetched() if name.startswith("tokenizer/") or name == "text_encoder/model.safetensors"
    ]


@pytest.mark.slow
def test_prefetch_of_what_is_here_and_of_a_sweep(online: Diffopt, hub: Hub) -> None:
    done = online("prefetch", "model=tiny", "hardware=cpu")
    assert (done.returncode, done.stdout) == (
        0,
        "model=tiny: nothing to fetch, its files are here or its weights are drawn\n",
    )
    done = online("prefetch", "-m", *asked("org/tiny,org/control,org/tiny", "precision=fp32,bf16"))
    assert done.returncode == 2  # the ControlNet alone is no pipeline
    done = online("prefetch", "-m", *asked("org/tiny", "precision=fp32,bf16"))
    assert len(done.stdout.splitlines()) == 1


def test_neither_planning_nor_prefetching_imports_torch(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import sys; from diffopt.cli.main import main\n"
        "code = main(['prefetch', 'model=hub', 'model.id=org/tiny', 'hardware=cpu'])\n"
        "print(code, [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(PACKAGED.parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []"


QUICK = ("measure=quick", "measure.max_variation=10", "workload.steps=1", "precision=fp32")


def rows(tmp_path: Path, study: str) -> list[dict[str, Any]]:
    paths = sorted((tmp_path / "studies" / study).rglob("result.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


@pytest.mark.slow
def test_runs_by_commit_and_offline_after_prefetch(online: Diffopt, hub: Hub, tmp_path: Path) -> None:
    words = asked("org/tiny", f"model.revision={COMMIT}", *QUICK)
    done = online("run", *words, "study=online")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows(tmp_path, "online")
    assert row["status"] == "ok"
    (log,) = (tmp_path / "studies" / "online").rglob("log.txt")
    assert f"org/tiny (revision {COMMIT}): commit {COMMIT}" in log.read_text(encoding="utf-8")

    assert online("prefetch", *asked("org/tiny", *QUICK)).returncode == 0
    hub.asked.clear()
    done = online("run", *asked("org/tiny", *QUICK), "study=offline", offline=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(tmp_path, "offline")[0]["status"] == "ok"
    assert hub.asked == []
    for path in (tmp_path / "studies").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()


@pytest.mark.slow
def test_what_goes_wrong_while_loading_is_a_row(online: Diffopt, tmp_path: Path) -> None:
    """A recipe that says everything asks the hub only when its cell runs."""
    shown = online("show", *asked("org/tiny", *QUICK))
    lock = tmp_path / "lock.yaml"
    lock.write_text(shown.stdout, encoding="utf-8")
    expected = {
        "org/gated": ("refused", "is gated on the hub"),
        "org/none": ("error", "is not on the hub, or is private"),
        "org/pickles": ("error", "has its weights only as a pickle"),
        "org/short": ("error", "cannot be downloaded: Consistency check failed"),
        "org/spoiled": ("error", "is not a safetensors file"),
    }
    done = online("run", "-m", "--recipe", str(lock), f"model.id={','.join(expected)}", "study=bad")
    assert done.returncode == 1
    found = {row["cell"]["recipe"]["model"]["id"]: row for row in rows(tmp_path, "bad")}
    assert found.keys() == expected.keys()
    for model_id, (status, reason) in expected.items():
        row = found[model_id]
        assert (row["status"], row["phase"]) == (status, "load"), row["reason"]
        assert reason in row["reason"]
        assert "\n" not in row["reason"]
        assert TOKEN not in json.dumps(row)
