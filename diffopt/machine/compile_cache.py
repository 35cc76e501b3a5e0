"""What compiling leaves on disk: where it lies, how a process gets a place of its own, and how it is carried elsewhere.

Inductor, Triton and CUDA keep caches; diffopt keeps packages that were compiled ahead of time (``compile=aot``). An
*artifact* is one file with everything that inductor made in a process, so that a process elsewhere starts warm.

An artifact is code: torch's part holds pickles, which torch reads at a hit, and the kernels are shared libraries. So
nothing loads one unless it is named together with the SHA-256 of its content. Nothing here imports torch before an
artifact is saved or loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from diffopt.errors import Refusal, UsageError
from diffopt.machine.environment import installed_versions
from diffopt.machine.files import make_private_folders, write_bytes
from diffopt.machine.hardware import cpu_model
from diffopt.machine.own_folder import own_folder
from diffopt.machine.paths import user_cache
from diffopt.machine.reading import MIB, opened_file
from diffopt.schema.record import Frozen

LARGEST = 8 * 1024 * MIB  # of an artifact
MAPS = Path("/proc/self/maps")  # what Linux tells a process of the files that it has mapped
MANIFEST, TORCH, KERNELS = "manifest.json", "torch.bin", "kernels/"
# by the variable that says where it lies, and what it is called below a folder that has them all
CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",  # the driver's, of kernels that it compiles from PTX
}
ROOT = "DIFFOPT_CACHE_DIR"
# of these, what was compiled with another version is not found again, or not loaded
DECISIVE = ("python", "torch", "triton", "diffusers", "transformers", "torchao", "diffopt-toolkit")


def compile_cache_root() -> Path:
    """diffopt's own cache: ``DIFFOPT_CACHE_DIR``, else ``diffopt`` in the user's cache folder (``XDG_CACHE_HOME``)."""
    own = os.environ.get(ROOT)
    return Path(own) if own else user_cache()


def own_compile_cache_root() -> Path:
    """The same, which is this user's alone. Raises Refusal where it is not, or cannot be."""
    try:
        root = compile_cache_root()
    except RuntimeError:
        raise Refusal(
            f"This user has no home for diffopt's caches: name a folder of your own, {ROOT}=/a/folder."
        ) from None
    return own_folder(root, ROOT)


def packages_of_user() -> Path:
    """Where packages that were compiled ahead of time are kept. Raises Refusal as :func:`own_compile_cache_root`."""
    return own_compile_cache_root() / "aot"


def compile_caches_of_user() -> dict[str, str]:
    """Environment variables of a process whose compile caches are this user's alone.

    What the user names is as named, what not lies below diffopt's own cache: torch's folder in a temporary one that all
    users share could be made by anybody beforehand.

    Raises:
        Refusal: one of them belongs to another user, others may write to it, or it cannot be made.
    """
    root = own_compile_cache_root()
    places = {name: Path(os.environ.get(name) or root / place) for name, place in CACHES.items()}
    return {ROOT: str(root), **{name: str(own_folder(place, name)) for name, place in places.items()}}


def check_compile_caches_of_process() -> None:
    """Raises Refusal where what this process compiles would come from a folder that is not this user's alone.

    Nothing is set: the folders stay those that torch takes, but inductor's is made here, before anybody else can.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    first, *others = CACHES
    own_folder(Path(os.environ.get(first, default_cache_dir())), first)
    for name in others:  # by default below inductor's folder, and in the user's home
        if named := os.environ.get(name):
            own_folder(Path(named), name)


def private_compile_caches(folder: Path) -> dict[str, str]:
    """Environment variables of a process that keeps all that compiling leaves behind below ``folder``.

    With an empty folder it starts cold, with the folder of an earlier process warm.
    """
    return {name: str(folder / place) for name, place in {**CACHES, ROOT: "diffopt"}.items()}


class Conditions(Frozen):
    """What compiled code is good for: library versions and the device, by name; on the CPU also its threads."""

    versions: dict[str, str]
    device: str
    threads: int | None  # inductor's C++ kernels are compiled for a number of threads


class Manifest(Frozen):
    """The first entry of an artifact."""

    format: Literal[1]
    place: Conditions
    entries: Annotated[int, Field(ge=1)]  # in torch's part
    kernels: Annotated[int, Field(ge=0)]  # shared libraries, which a CPU's graphs are made of


@dataclass(frozen=True)
class Artifact:
    """An artifact that was written."""

    path: Path
    sha256: str
    bytes: int
    entries: int
    kernels: int


def compile_conditions_here(device: Literal["cuda", "cpu"]) -> Conditions:
    """The place of this process. Imports torch."""
    import torch

    found = {name: version for name, version in installed_versions().items() if name in DECISIVE}
    if device == "cpu":
        return Conditions(versions=found, device=cpu_model(), threads=torch.get_num_threads())
    major, minor = torch.cuda.get_device_capability()
    name = f"{torch.cuda.get_device_name()}, {major}.{minor}, CUDA {torch.version.cuda}"
    return Conditions(versions=found, device=name, threads=None)


def save_compile_cache_artifact(path: Path, device: Literal["cuda", "cpu"]) -> Artifact | None:
    """Write what inductor compiled, or took from its cache, in this process; None when that is nothing."""
    import torch

    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return None
    content, info = saved
    kernels = _loaded_kernels()
    manifest = Manifest(
        format=1,
        place=compile_conditions_here(device),
        entries=sum(map(len, info.artifacts.values())),
        kernels=len(kernels),
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True))
        file.writestr(TORCH, content)
        for name, kernel in kernels.items():
            file.write(kernel, KERNELS + name)
    make_private_folders(path.parent)
    write_bytes(path, packed.getvalue())
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    return Artifact(path, digest, len(packed.getvalue()), manifest.entries, manifest.kernels)


def load_compile_cache_artifact(path: Path, sha256: str, device: Literal["cuda", "cpu"]) -> Manifest:
    """Put an artifact into this process's caches. Its author's code runs from then on.

    Raises:
        UsageError: there is no such file, it is not the one with this SHA-256, or it is no artifact.
        Refusal: it was made for another place, where nothing of it would be found again; or this process's caches are
            not this user's alone.
    """
    import torch

    check_compile_caches_of_process()
    content = _pinned(path, sha256)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            manifest = Manifest.model_validate_json(file.read(MANIFEST))
            _check_place(path, manifest.place, compile_conditions_here(device))
            entries = file.read(TORCH)
            kernels = {name: file.read(name) for name in file.namelist() if name.startswith(KERNELS)}
    except (zipfile.BadZipFile, KeyError, ValidationError) as error:
        raise UsageError(f"{path} is not an artifact that diffopt saved: {error}.") from error
    for name, kernel in kernels.items():
        target = _kernel_path(path, name.removeprefix(KERNELS))
        make_private_folders(target.parent)
        write_bytes(target, kernel)
    if torch.compiler.load_cache_artifacts(entries) is None:
        raise Refusal(f"{path}: torch {torch.__version__} cannot read its part of the artifact; see the log")
    return manifest


def _pinned(path: Path, sha256: str) -> bytes:
    """The file's content, which nothing has looked into before it is known to be the one that was meant."""
    try:
        with opened_file(path, str(path), LARGEST) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()  # before gigabytes of another file are in memory
            file.seek(0)
            content = file.read() if found == sha256.lower() else b""
    except OSError as error:
        raise UsageError(f"{path} cannot be read as an artifact: {error.strerror}.") from error
    if content:
        found = hashlib.sha256(content).hexdigest()  # of what is used, whatever was written there meanwhile
    if found != sha256.lower():
        raise UsageError(
            f"{path} has the SHA-256 {found}, not {sha256}. An artifact runs its author's code, so it is not opened. "
            f"If the file is the one that you trust, write its own SHA-256 beside its name."
        )
    return content


def _check_place(path: Path, made: Conditions, here: Conditions) -> None:
    differences = [
        f"{name} {made.versions.get(name, 'none')} (here {here.versions.get(name, 'none')})"
        for name in DECISIVE
        if made.versions.get(name) != here.versions.get(name)
    ]
    for name in ("device", "threads"):
        if getattr(made, name) != getattr(here, name):
            differences.append(f"{name} {getattr(made, name)} (here {getattr(here, name)})")
    if differences:
        raise Refusal(f"{path} would start nothing warm here, as it was made with {', '.join(differences)}")


def _inductor_folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()).resolve()


def _loaded_kernels() -> dict[str, Path]:
    """The shared libraries that this process loaded from inductor's folder, by their path in it.

    Torch's own artifacts have none of a CPU's, which C++ compilers take most of a cold start to make again. They are
    found under hashes of the compiler's command line, so only where Python and torch lie in the same folders.
    """
    folder = _inductor_folder()
    lines = MAPS.read_text(encoding="utf-8").splitlines() if MAPS.exists() else []
    libraries = {Path(line.split(maxsplit=5)[5]) for line in lines if line.endswith(".so")}
    return {str(path.relative_to(folder)): path for path in sorted(libraries) if path.is_relative_to(folder)}


def _kernel_path(artifact: Path, name: str) -> Path:
    folder = _inductor_folder()
    target = (folder / name).resolve()
    if not target.is_relative_to(folder) or target.suffix != ".so":
        raise UsageError(f"{artifact} is not an artifact that diffopt saved: {name} is no kernel.")
    return target
