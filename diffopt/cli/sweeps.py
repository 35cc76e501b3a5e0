"""The verb that measures."""

from __future__ import annotations

import argparse

from diffopt.cli import printing
from diffopt.cli.arguments import requests_of_arguments
from diffopt.cli.progress import progress
from diffopt.machine.interpreter import interpreters
from diffopt.results.study import Study
from diffopt.results.table import results_table
from diffopt.run.launchers import check_launcher
from diffopt.run.sweep import run_all


def run_sweep_verb(args: argparse.Namespace) -> int:
    requests = requests_of_arguments(args)
    name = requests[0].study
    check_launcher(requests[0].launch.kind)  # asked before there is a study
    with interpreters(request.cell.runtime for request in requests) as others:  # likewise
        study = Study.fresh() if name is None else Study.create(name)
        with progress() as listener:
            results = run_all([request.cell for request in requests], study, requests[0].launch, listener, others)
    printing.print_table(results_table(results))
    printing.print_study_folder(study, results)
    printing.print_rest(name or study.name, results, requests[0].launch.minutes)
    fine = ("ok", "refused") if args.multirun else ("ok",)
    return 0 if all(result.status in fine for result in results) else 1
