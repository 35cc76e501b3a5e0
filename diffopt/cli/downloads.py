"""The verb that downloads."""

from __future__ import annotations

import argparse

from diffopt.cli.arguments import requests_of
from diffopt.models.prefetch import fetch, targets


def prefetch(args: argparse.Namespace) -> int:
    """Prints as it goes: some models take an hour."""
    models = [request.cell.recipe.model for request in requests_of(args)]
    for name in dict.fromkeys(model.name for model in models if not list(targets(model))):
        print(f"model={name}: nothing to fetch, its files are here or its weights are drawn")
    for target in dict.fromkeys(target for model in models for target in targets(model)):
        fetched = fetch(target)
        revision = f"revision {target.revision or 'main'}"
        print(f"{target.id}  {revision}  commit {fetched.commit}  {fetched.size} bytes", flush=True)
    return 0
