"""A module that is called through code compiled ahead of time (AOTInductor), and the proof of it. Imports torch.

``torch.export`` captures the module for the inputs that it is called with, inductor compiles the graph into a *package*
(a file with a shared library), and a later process loads that file and compiles nothing. A package holds code alone:
weights are given to it by name and stay where they are, so it is small, and weights are in memory once
(https://huggingface.co/blog/zerogpu-aoti).
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo import eval_frame
from torch._dynamo.utils import counters
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import TreeSpec, tree_flatten

from diffopt.errors import NoEffect, Refusal
from diffopt.machine.compile_cache import ROOT
from diffopt.machine.files import FOLDER_FOR_ITS_USER, make_private_folders
from diffopt.machine.own_folder import check_own_folder
from diffopt.machine.temporary import temporary_folder
from diffopt.schema.step import Effect
from diffopt.steps.compile.fingerprint import Constants, compiled_constants, fingerprint_of_compiled_module

PACKAGE, CONSTANTS, INPUTS = "package.pt2", "constants.pt", "inputs.json"
# of one module; as with dynamo's limit of recompiles, more of them mean that an input changes from call to call
MOST_PACKAGES = 8
# inductor writes the values of small weights into the code unless it is told to keep them; a package without weights
# of its own is then wrong for every other model of this shape
WITHOUT_WEIGHTS = {"aot_inductor.package_constants_in_so": False, "always_keep_tensor_constants": True}

Signature = tuple[TreeSpec, tuple[Any, ...]]


@dataclass(frozen=True)
class Package:
    """Compiled code for one signature of inputs."""

    run: Any  # torch's AOTICompiledModel
    own: Constants  # tensors that are no weights; the library knows addresses only, so they are kept here
    given: Mapping[str, int]  # addresses of the weights that it was given, by name
    compiled: bool  # in this process; else it was loaded
    bytes: int


class PackagedCall:
    """Calls ``module`` through packages, one for each signature of its inputs: shapes, strides, types and settings.

    Args:
        folder: where packages are looked for and kept.
        identity: everything besides the module and its inputs that a package depends on.
        settings: inductor's, by its own names.
    """

    def __init__(self, module: nn.Module, folder: Path, *, identity: Any, settings: Mapping[str, Any]) -> None:
        self.module, self.folder, self.identity = module, folder, identity
        self.settings = {**settings, **WITHOUT_WEIGHTS}
        self.packages: dict[Signature, Package] = {}
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        signature = _signature(args, kwargs)
        package = self.packages.get(signature)
        if package is None:
            package = self.packages[signature] = self._package(signature, args, kwargs)
        self.calls += 1
        return package.run(*args, **kwargs)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The module's, before its first call: some remember what they computed in it."""
        return fingerprint_of_compiled_module(self.module)

    def moved(self) -> list[str]:
        """Names of the weights that are no longer where a package was told to find them."""
        now = {name: tensor.data_ptr() for name, tensor in compiled_constants(self.module).items()}
        given = dict(chain.from_iterable(package.given.items() for package in self.packages.values()))
        return sorted(name for name, address in given.items() if now.get(name) != address)

    def _package(self, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Package:
        if len(self.packages) == MOST_PACKAGES:
            raise Refusal(
                f"compile=aot: {type(self.module).__name__} is called with more than {MOST_PACKAGES} kinds of inputs, "
                f"of which each would need a package; choose compile=dynamic"
            )
        inputs = _described(signature)
        told = json.dumps([self.identity, self.fingerprint, inputs], sort_keys=True)
        folder = self.folder / hashlib.sha256(told.encode()).hexdigest()[:24]
        compiled = not folder.is_dir()
        if compiled:
            if eval_frame._stance.stance == "fail_on_recompile":
                raise RuntimeError(f"compile=aot: a package would be compiled in the timed part, for {inputs}")
            self._compile(folder, inputs, args, kwargs)
        counters["aot_packages"]["compiled" if compiled else "loaded"] += 1
        return self._load(folder, compiled=compiled)

    def _compile(self, folder: Path, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make a package beside ``folder`` and rename it, so that others see it whole or not at all."""
        make_private_folders(folder.parent)
        with temporary_folder("aot", folder.parent) as place:
            partial = place / folder.name
            partial.mkdir(FOLDER_FOR_ITS_USER)
            self._compile_into(partial, inputs, args, kwargs)
            _publish(partial, folder)

    def _compile_into(self, partial: Path, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call, self.module._compiled_call_impl = self.module._compiled_call_impl, None  # export calls the module
        try:
            self.module(*args, **kwargs)  # what it computes once and keeps, export would refuse to see assigned
            program = torch.export.export(self.module, args, kwargs)
            own = _name_constants(program, self.module)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's packaging asks pytree the deprecated way
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(partial / PACKAGE), inductor_configs=dict(self.settings)
                )
            torch.save(own, partial / CONSTANTS)
            (partial / INPUTS).write_text(json.dumps(inputs, indent=1), encoding="utf-8")
        finally:
            self.module._compiled_call_impl = call

    def _load(self, folder: Path, *, compiled: bool) -> Package:
        check_own_folder(folder.resolve(), ROOT, str(folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            run = torch._inductor.aoti_load_package(str(folder / PACKAGE))
        own: Constants = torch.load(folder / CONSTANTS, weights_only=True)
        known = {**own, **compiled_constants(self.module)}
        wanted = run.get_constant_fqns()
        if unknown := sorted(set(wanted) - known.keys()):
            raise Refusal(f"compile=aot: {type(self.module).__name__} has no {', '.join(unknown)}, as its package asks")
        # user_managed: without a copy
        run.load_constants({name: known[name] for name in wanted}, check_full_update=True, user_managed=True)
        given = {name: known[name].data_ptr() for name in wanted if name not in own}
        return Package(run, own, given, compiled=compiled, bytes=(folder / PACKAGE).stat().st_size)


def proof_of_compiled_packages(calls: Mapping[str, Any]) -> Effect:
    """Sum up the :class:`PackagedCall` of each component. Raises NoEffect where one is gone or was never called."""
    numbers: dict[str, int | float | str] = {}
    packages: list[Package] = []
    for name, call in calls.items():
        if not isinstance(call, PackagedCall):
            raise NoEffect(f"compile: {name} is not called through a package (any more)")
        if not call.calls:
            raise NoEffect(f"compile: {name} was never called through its package")
        if moved := call.moved():
            raise NoEffect(f"compile: {len(moved)} weights of {name} were moved or replaced after its package got them")
        numbers[f"{name}_calls"] = call.calls
        packages += call.packages.values()
    compiled = sum(package.compiled for package in packages)
    size = sum(package.bytes for package in packages)
    numbers |= {"packages_loaded": len(packages) - compiled, "packages_compiled": compiled, "package_bytes": size}
    ways = {"loaded": len(packages) - compiled, "compiled and saved": compiled}
    told = ", ".join(f"{count} {'packages' if count > 1 else 'package'} {way}" for way, count in ways.items() if count)
    return Effect(f"{told} ({size / 1e6:.1f} MB)", numbers)


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, and its package is as good
            raise


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
    leaves, spec = tree_flatten((args, kwargs))
    return spec, tuple(
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else (type(leaf), leaf)
        for leaf in leaves
    )


def _described(signature: Signature) -> list[str]:
    """The signature as text, the same in every process. Raises Refusal for an input that has no such text."""
    spec, leaves = signature
    described = [str(spec)]
    for leaf in leaves:
        if len(leaf) == 4:
            shape, stride, dtype, device = leaf
            described.append(f"{tuple(shape)} {stride} {dtype} {device.type}")
        elif leaf[0] in (type(None), bool, int, float, str):
            described.append(repr(leaf[1]))
        else:
            raise Refusal(f"compile=aot: an input of type {leaf[0].__name__} cannot be a part of a package")
    return described


def _name_constants(program: ExportedProgram, module: nn.Module) -> Constants:
    """Tensors that are no weights of the module, and their names: literals of its code, and plain attributes.

    As buffers they keep their names in the package; else inductor would number them, and nobody could give them.
    """
    weights = {name for name, _ in chain(module.named_parameters(), module.named_buffers())}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR:
            spec.kind, spec.persistent = InputKind.BUFFER, False
    found = {name: value for name, value in program.constants.items() if name not in weights}
    if odd := sorted(name for name, value in found.items() if not isinstance(value, torch.Tensor)):
        raise Refusal(f"compile=aot: {type(module).__name__} has constants that are no tensors: {', '.join(odd)}")
    return {name: value.detach() for name, value in found.items()}
