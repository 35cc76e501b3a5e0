"""A sweep over the faulty steps as a process of its own: ``sweep_faulty.py STUDY DEADLINE_S KIND…``; prints the rows.

A process of its own, because steps are registered when diffopt is imported, and because tests kill it.
"""

import json
import sys
from pathlib import Path

from diffopt.cli.progress import progress
from diffopt.config.resolve import cell_from_config, compose_requests
from diffopt.errors import Interrupted
from diffopt.run.events import CellFinished
from diffopt.run.sweep import run_all


def ask(kinds):
    """One cell per kind of layout, everything else the same."""
    (base,) = compose_requests(["measure=quick", "measure.samples=2", "measure.max_samples=2", "workload.steps=1"])
    for kind in kinds:
        data = base.cell.model_dump(mode="json")
        data["recipe"]["layout"] = {"kind": kind}
        data["choices"]["layout"] = kind
        yield cell_from_config(data), base.launch


def main(study, deadline, *kinds):
    asked, launches = zip(*ask(kinds), strict=True)
    (launch,) = set(launches)
    launch = launch.model_copy(
        update={"grace": 1.0, "deadlines": launch.deadlines.model_copy(update={"optimize": float(deadline)})}
    )
    kept = []
    with progress() as show:

        def listen(event):
            show(event)
            if isinstance(event, CellFinished) and event.kept:
                kept.append(event.result.choices["layout"])

        try:
            rows = run_all(asked, Path(study), launch, listen)
        except Interrupted as interrupted:
            sys.exit(128 + interrupted.signal)
    print(json.dumps({"kept": kept, "rows": [row.model_dump(mode="json") for row in rows]}))
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
