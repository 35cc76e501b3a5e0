"""What a component of a pipeline is: told by the files that its library wrote, else by the library itself.

No name is guessed at: transformers calls its tokenizers ``CLIPTokenizer``, ``PreTrainedTokenizerFast`` or
``TokenizersBackend``. The library is asked in a process of its own, since this one imports no torch, and once for each
class and version; the answer is remembered under the user's cache folder.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from importlib import metadata
from typing import Any, Literal, get_args

from diffopt.errors import UsageError
from diffopt.machine.process import lines_of_program
from diffopt.machine.remembered import recall_answers, remember_answers, remembered_file

Kind = Literal["tokenizer", "scheduler", "processor", "guider", "module"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PROCESSOR_FILES = frozenset({"processor_config.json", "preprocessor_config.json"})
TOKENIZER_FILES = frozenset(
    {"tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json"}
    | {"spiece.model", "tokenizer.model"}
)
MEMORY = "kinds.json"  # in the user's cache
ANSWER_S = 300.0  # importing torch takes seconds, on a slow network disk minutes
LONGEST_ANSWER = 2**20  # bytes of a line; a library may print a long one of its own before
# By the names of the classes that it descends from; a processor may be a module too, and is asked for first.
QUESTION = """
import importlib, json, sys
kinds = {
    "PreTrainedTokenizerBase": "tokenizer", "SchedulerMixin": "scheduler", "BaseGuidance": "guider",
    "ProcessorMixin": "processor", "ImageProcessingMixin": "processor", "FeatureExtractionMixin": "processor",
    "Module": "module",
}
module, name = sys.argv[1:]
bases = [each.__name__ for each in getattr(getattr(importlib.import_module(module), name, None), "__mro__", ())]
print(json.dumps(next((kind for base, kind in kinds.items() if base in bases), None)))
"""


def kind_of_component(module: str, class_name: str, names: frozenset[str]) -> Kind:
    """What a component is. ``module`` has the class, ``names`` are those of the files in the component's folder.

    Raises UsageError where neither the files nor the library tell.
    """
    return _told_by_files(names) or kind_told_by_library(module, class_name)


def _told_by_files(names: frozenset[str]) -> Kind | None:
    """Each of diffusers' and transformers' base classes saves its config by a name of its own; None: not one alone."""
    told: dict[Kind, bool] = {
        "scheduler": "scheduler_config.json" in names,
        "guider": "guider_config.json" in names,
        "processor": bool(PROCESSOR_FILES & names),
        "tokenizer": bool(TOKENIZER_FILES & names),
        "module": "config.json" in names,
    }
    kinds = [kind for kind, there in told.items() if there]
    return kinds[0] if len(kinds) == 1 else None


@functools.cache
def kind_told_by_library(module: str, class_name: str) -> Kind:
    """What the installed library says of its class. Raises UsageError where it has no such class, or is not here."""
    library = module.partition(".")[0]
    key = f"{library} {_version(library)} {module}.{class_name}"
    memory = remembered_file(MEMORY)
    known = _kind(None if memory is None else recall_answers(memory).get(key))
    if known is not None:
        return known
    told = _kind(_asked_of_library(module, class_name))
    if told is None:
        raise UsageError(
            f"{module}.{class_name} is neither a model nor a tokenizer, a scheduler, a processor or a guider of "
            f"the {library} that is here ({_version(library) or 'none'}); install the version that saved the model"
        )
    if memory is not None:
        remember_answers(memory, {**recall_answers(memory), key: told})
    return told


def _kind(answer: Any) -> Kind | None:
    return next((kind for kind in KINDS if kind == answer), None)


def _asked_of_library(module: str, class_name: str) -> Any:
    """The answer of a process that imports the library; None where it has none."""
    command = [sys.executable, "-W", "ignore", "-P", "-c", QUESTION, module, class_name]
    said, _ = lines_of_program(command, os.environ, ANSWER_S, longest=LONGEST_ANSWER)
    try:
        return json.loads(said[-1]) if said else None
    except ValueError:
        return None


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
