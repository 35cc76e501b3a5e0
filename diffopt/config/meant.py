"""Models that a command line names by what they are: a repository of the hub, or a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from diffopt.schema.words import hydra_literal

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # ORG/NAME
INDEX = "model_index.json"


def is_model_itself(value: str) -> bool:
    """Whether this is no option's name, but a folder with a pipeline or ORG/NAME of the hub."""
    return _is_folder(value) or REPOSITORY.fullmatch(value) is not None and not value.startswith(".")


def with_models_as_options(overrides: Sequence[str], options: Sequence[str]) -> list[str]:
    """``model=ORG/NAME`` as ``model=hub model.id=ORG/NAME``, and ``model=FOLDER`` as ``model=local`` with its path."""
    found: list[str] = []
    for text in overrides:
        key, _, value = text.partition("=")
        value = value.strip("'\"")
        if key != "model" or value in options or not is_model_itself(value):
            found.append(text)
        elif _is_folder(value):
            found += ["model=local", f"model.path={hydra_literal(value)}"]
        else:
            found += ["model=hub", f"model.id={hydra_literal(value)}"]
    return found


def _is_folder(value: str) -> bool:
    try:
        folder = Path(value).expanduser()
        return (folder / INDEX).is_file()
    except PermissionError:
        return folder.is_dir()  # and whoever reads it says why it cannot be
    except RuntimeError:  # ~ of a user that there is not
        return False
