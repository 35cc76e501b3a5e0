"""The verbs that look at this machine: env and doctor."""

from __future__ import annotations

import argparse
import json

from diffopt.cli import printing
from diffopt.cli.arguments import composer_of_arguments
from diffopt.config import catalogue
from diffopt.doctor.examine import examine_machine, machine_works, print_doctor_finding, summarize_findings
from diffopt.machine import nvml
from diffopt.machine.environment import detect_environment
from diffopt.recipe.recipe import STEP_GROUPS


def run_env_verb(args: argparse.Namespace) -> int:
    composer = composer_of_arguments(args)
    options = {
        group: {row.option: row.here for row in catalogue.list_options(composer, group)} for group in STEP_GROUPS
    }
    here = detect_environment("cpu")
    gpus = [nvml.gpu_device(gpu.uuid) for gpu in nvml.detect_gpus()]
    if args.json:
        facts = {"versions": here.versions, "cpu": here.cpu.model_dump(), "gpus": [gpu.model_dump() for gpu in gpus]}
        print(json.dumps({**facts, "options": options}, indent=2))
    else:
        printing.print_environment(here, gpus, options)
    return 0


def run_doctor_verb(args: argparse.Namespace) -> int:
    """Exit code 1 when something fails that this machine should be able to do."""
    found = examine_machine((lambda finding: None) if args.json else print_doctor_finding)
    if args.json:
        print(json.dumps({"works": machine_works(found), "checks": [f.model_dump() for f in found]}, indent=2))
    else:
        print(summarize_findings(found))
    return 0 if machine_works(found) else 1
