"""The verb that says what would be done."""

from __future__ import annotations

import argparse
import json

from diffopt.cli import printing
from diffopt.cli.arguments import requests_of_arguments
from diffopt.cli.progress import progress
from diffopt.config.loaded_code import loaded_code
from diffopt.run.dry_call import plan_cells
from diffopt.run.launchers import check_launcher


def run_plan_verb(args: argparse.Namespace) -> int:
    """Exit code 0: a plan that lists refusals has done its work."""
    requests = requests_of_arguments(args)
    check_launcher(requests[0].launch.kind)  # as `run` would complain
    with progress() as listener:
        plans = plan_cells([request.cell for request in requests], deep=args.deep, listener=listener)
    code = [loaded_code(request) for request in requests]
    if args.json:
        cells = [
            {**plan.to_json(), "code": [each.to_json() for each in own]} for plan, own in zip(plans, code, strict=True)
        ]
        print(json.dumps({"cells": cells}, indent=2, ensure_ascii=False))
    elif len(plans) == 1:
        print(plans[0].text(code[0]))
    else:
        print(printing.many_plans_in_words(plans, code))
        if (minutes := requests[0].launch.minutes) is not None:
            print(f"launch.minutes={minutes:g}: `diffopt run` begins them in this order as long as there is time")
    return 0
