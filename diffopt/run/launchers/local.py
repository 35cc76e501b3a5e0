"""The launcher of one machine: cells for GPUs first, one at a time on each that fits, then cells for the CPU alone.

A busy host is what a cell for the CPU measures, so nothing runs beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from diffopt.errors import Refusal
from diffopt.machine import hardware
from diffopt.machine.nvml import Gpu
from diffopt.recipe.cell import Cell
from diffopt.results.result import Result
from diffopt.run.runner import Runner


def run(cells: Sequence[Cell], runner: Runner) -> list[Result]:
    """Run the cells here, see :class:`Launcher`."""
    fitting = {cell.id: runner.of_earlier_round(cell, _fitting(cell)) for cell in cells}
    gpus = {gpu.uuid: gpu for found in fitting.values() for gpu in found}
    queue = _Queue([cell for cell in cells if fitting[cell.id]], fitting)

    def lane(gpu: Gpu) -> list[Result | None]:
        rows = []
        while not runner.stopped and (cell := queue.next_for(gpu)) is not None:
            rows.append(runner.take(cell, gpu))
        return rows

    rows: list[Result | None] = []
    if gpus:
        with ThreadPoolExecutor(max_workers=len(gpus)) as pool:
            rows += [row for found in pool.map(lane, gpus.values()) for row in found]
    for cell in cells:
        if not fitting[cell.id] and not runner.stopped:
            rows.append(runner.take(cell, None))
    return [row for row in rows if row is not None]


class _Queue:
    """Cells that wait for a GPU; each lane takes the first that fits its own."""

    def __init__(self, cells: Sequence[Cell], fitting: Mapping[str, Sequence[Gpu]]) -> None:
        self._cells, self._fitting = list(cells), fitting
        self._lock = threading.Lock()

    def next_for(self, gpu: Gpu) -> Cell | None:
        with self._lock:
            index = next((i for i, cell in enumerate(self._cells) if gpu in self._fitting[cell.id]), None)
            return None if index is None else self._cells.pop(index)


def _fitting(cell: Cell) -> Sequence[Gpu]:
    """The GPUs that can run the cell; none for the CPU, and none where the driver is broken, as its row will tell."""
    if cell.recipe.hardware.device == "cpu":
        return ()
    try:
        return hardware.matching_gpus(cell.recipe.hardware)
    except Refusal:
        return ()
