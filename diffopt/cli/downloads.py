"""The verb that downloads."""

from __future__ import annotations

import argparse

from diffopt.cli.arguments import requests_of_arguments
from diffopt.cli.streams import print_line
from diffopt.models.prefetch import fetch_target_from_hub, prefetch_targets


def run_prefetch_verb(args: argparse.Namespace) -> int:
    """Prints as it goes: some models take an hour."""
    models = [request.cell.recipe.model for request in requests_of_arguments(args)]
    for name in dict.fromkeys(model.name for model in models if not list(prefetch_targets(model))):
        print_line(f"model={name}: nothing to fetch, its files are here or its weights are drawn")
    for target in dict.fromkeys(target for model in models for target in prefetch_targets(model)):
        fetched = fetch_target_from_hub(target)
        revision = f"revision {target.revision or 'main'}"
        print_line(f"{target.id}  {revision}  commit {fetched.commit}  {fetched.size} bytes")
    return 0
