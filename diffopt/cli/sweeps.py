"""The verb that measures."""

from __future__ import annotations

import argparse

from diffopt.cli import printing
from diffopt.cli.arguments import requests_of_arguments
from diffopt.cli.progress import progress
from diffopt.machine.compile_cache import compile_caches_of_user
from diffopt.machine.interpreter import interpreters
from diffopt.results.study import Study
from diffopt.results.table import results_table
from diffopt.run.launchers import check_launcher
from diffopt.run.sweep import run_all, run_single


def run_sweep_verb(args: argparse.Namespace) -> int:
    """Exit code 0: each row of a sweep is ok or refused; of a single run, it is ok, valid and accepted."""
    requests = requests_of_arguments(args)
    name, launch = requests[0].study, requests[0].launch
    cells = [request.cell for request in requests]
    check_launcher(launch.kind)  # asked before there is a study
    compile_caches_of_user()  # likewise
    with interpreters(cell.runtime for cell in cells) as others:  # likewise
        study: Study | None
        if args.multirun:
            study = Study.fresh() if name is None else Study.create(name)
            with progress() as listener:
                results = run_all(cells, study, launch, listener, others, anew=args.force, deep=args.deep)
        else:
            with progress() as listener:
                result, study = run_single(
                    cells[0],
                    study=name,
                    launch=launch,
                    listener=listener,
                    others=others,
                    anew=args.force,
                    deep=args.deep,
                )
            results = [result]
    printing.print_table(results_table(results, requests[0].reference))
    if study is not None:
        printing.print_study_folder(study, results)
        printing.print_rest(name or study.name, results, launch.minutes)
    if args.multirun:
        return 0 if all(result.status in ("ok", "refused") for result in results) else 1
    return 0 if results[0].status_in_words == "ok" else 1
