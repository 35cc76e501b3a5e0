"""What pyproject.toml asks for can be had and does hold, and constraints.txt is all that was tested."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.places import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
ASKED = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
EXTRAS = {extra: list(map(Requirement, texts)) for extra, texts in PROJECT["project"]["optional-dependencies"].items()}
PINS = {
    canonicalize_name(name): version
    for name, _, version in (
        line.partition("==") for line in (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    )
    if version
}
DISTRIBUTION_OF_MODULE = {"hydra": "hydra-core", "yaml": "pyyaml", "PIL": "pillow", "pynvml": "nvidia-ml-py"}
# Private attributes of objects that other libraries make: whose they are. A new one belongs here.
WHOSE = {
    "torch": {
        *("_buffers", "_modules", "_non_persistent_buffers_set", "_call_impl", "_compiled_call_impl", "_orig_mod"),
        *("_stance", "_cdata", "_config", "_dynamo", "_inductor", "_int_mm", "_scaled_mm"),
        *("_schema", "_to_copy"),
    },
    "diffusers": {
        *("_attention_backend", "_supports_qkv_fusion", "_HUB_KERNELS_REGISTRY", "_resolve_kernel_attr", "_metadata"),
        *("_reset_stateful_cache", "_perform_calibration_step", "_context", "_internal_dict", "_module_ref"),
        *("_repeated_blocks", "_skip_layerwise_casting_patterns", "_diffusers_hook", "_optional_components"),
        *("_exclude_from_cpu_offload", "_execution_device", "_lora_loadable_modules", "_backends"),
    },
    "transformers": {"_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"},
    "accelerate": {"_hf_hook", "_old_forward"},
    "hydra": {"_compose_config_from_defaults_list", "_value"},
}
OURS = {  # or the standard library's
    *("_base", "_skeletons", "_cache_watch", "_set_timesteps", "_step", "_with_host_timesteps"),
    *("_asdict", "_replace", "_exit", "_cells", "_refuse_link", "_keeper", "_drawings"),
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def uses_of_private_names() -> Iterator[tuple[str, str]]:
    """A private name and the file that uses it; of an import its whole path, of an attribute the attribute."""
    for path in sorted((REPO / "diffopt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute) and private(node.attr):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                names = [] if own else [node.attr]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
                words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                names = [word for word in words if isinstance(word, str)]
            for name in names:
                parts = name.split(".")
                if any(map(private, parts[1:] or parts)) and parts[0] != "diffopt":
                    yield name, str(path.relative_to(REPO))


def library_of(name: str) -> str | None:
    """Whose private name it is; None for one of ours."""
    if "." in name:
        return name.split(".")[0]
    return next((library for library, names in WHOSE.items() if name in names), None)


def test_every_private_name_is_somebodys() -> None:
    unknown = {(name, file) for name, file in uses_of_private_names() if library_of(name) is None and name not in OURS}
    assert not unknown, "say in WHOSE whose they are"


def test_a_library_of_which_private_names_are_used_has_a_cap() -> None:
    used = {library_of(name) for name, _ in uses_of_private_names()} - {None}
    assert {"torch", "diffusers", "hydra", "omegaconf"} <= used
    caps = {canonicalize_name(one.name): [each for each in one.specifier if each.operator == "<"] for one in ASKED}
    assert not [library for library in used if not caps[DISTRIBUTION_OF_MODULE.get(library, library)]]  # type: ignore[index, arg-type]


def least(requirement: Requirement) -> Version:
    """The lowest version that it allows."""
    return max(Version(each.version) for each in requirement.specifier if each.operator in (">=", "=="))


def test_no_lower_bound_is_below_what_the_other_requirements_ask() -> None:
    """One that is could never be installed, so nobody could have tested it."""
    bounds = {canonicalize_name(one.name): least(one) for one in ASKED}
    too_low = []
    for name in bounds:
        for text in metadata.requires(name) or []:
            their = Requirement(text)
            wanted = bounds.get(canonicalize_name(their.name))
            if wanted is None or (their.marker and not their.marker.evaluate({"extra": ""})):
                continue
            if not their.specifier.contains(wanted, prereleases=True):
                too_low.append(f"{their.name}>={wanted}, but {name} asks for {their}")
    assert not too_low


def everything_installed_for(requirements: list[Requirement]) -> dict[str, str]:
    """The versions of what these requirements bring with them here."""
    found: dict[tuple[str, frozenset[str]], str] = {}
    waiting = list(requirements)
    while waiting:
        one = waiting.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in found:
            continue
        there = metadata.distribution(one.name)
        found[key] = Version(there.version).public
        for text in there.requires or []:
            their = Requirement(text)
            if their.marker is None or any(their.marker.evaluate({"extra": extra}) for extra in (*one.extras, "")):
                waiting.append(their)
    return {name: version for (name, _), version in found.items()}


def test_all_of_the_tested_set_is_pinned() -> None:
    installed = everything_installed_for([*ASKED, *(one for extra in EXTRAS.values() for one in extra)])
    build = {canonicalize_name(Requirement(text).name) for text in PROJECT["build-system"]["requires"]}
    assert {name: version for name, version in PINS.items() if name not in build} == installed
    assert build <= PINS.keys()


def test_the_tested_set_is_what_is_asked_for() -> None:
    for one in [*ASKED, *(one for extra in EXTRAS.values() for one in extra)]:
        assert one.specifier.contains(PINS[canonicalize_name(one.name)]), one


WITH_TORCH = {"torch", "diffusers", "transformers", "accelerate", "torchao"}  # the rest is what plans are made with
VERBS = {
    "ls attention": 0,
    "show recipe=pytorch2 model=sdxl hardware=a100": 0,
    "plan -m recipe=baseline,pytorch2 model=sd15,flux_dev hardware=a100": 0,
    "plan --json model=sd15 hardware=cpu": 0,
    "diff baseline pytorch2": 0,
    "report --published pytorch2": 0,
    "env": 0,
    "run -m hardware=a100,t4 study=s": 0,  # rows that say what is not here
    "report s": 0,
    "plan nope=1": 2,
}


def environment(folder: Path, python: str, requirements: list[str]) -> Path:
    """The Python of a fresh environment with these packages."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    there = folder / "bin" / "python"
    pip = [there, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *requirements], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return there


def check_verbs(python: Path, folder: Path) -> None:
    """Every verb that needs no torch ends as it does with the tested set, without a warning."""
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    for words, code in VERBS.items():
        command = [python, "-W", "error", "-m", "diffopt", *words.split()]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == code, (words, done.stderr)
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr


def light(pinned: bool) -> list[str]:
    """What the verbs without torch need: as tested, or in the lowest version that is asked for."""
    asked = [one for one in ASKED if one.name not in WITH_TORCH]
    return [f"{one.name}=={PINS[canonicalize_name(one.name)] if pinned else least(one)}" for one in asked]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_verbs_without_torch_on_each_python(version: str, tmp_path: Path) -> None:
    given = f"python{version}"
    python = sys.executable if version == ".".join(map(str, sys.version_info[:2])) else shutil.which(given)
    if python is None or subprocess.run([python, "-c", "import venv"], capture_output=True).returncode:
        pytest.skip(f"{given} is not here")
    pins = tmp_path / "pins.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in PINS.items()))
    check_verbs(environment(tmp_path / "venv", python, ["-c", str(pins), *light(pinned=True)]), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the oldest packages have no wheels for newer ones")
def test_the_verbs_without_torch_on_the_lowest_versions(tmp_path: Path) -> None:
    check_verbs(environment(tmp_path / "venv", sys.executable, light(pinned=False)), tmp_path)


def test_the_classifiers_are_the_pythons_of_these_tests() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    (mark,) = (
        each
        for each in test_the_verbs_without_torch_on_each_python.pytestmark
        if each.name == "parametrize"  # type: ignore[attr-defined]
    )
    assert named == mark.args[1]
