"""Plans of cells, and for models that are told by their own files a call without weights in them. Never imports torch.

The call is made in a process of its own and its answer kept under the user's cache folder, by the content of the files
that the pipeline is made of, by all that decides the call, and by the versions of the libraries.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from diffopt.errors import UsageError
from diffopt.machine.content import sha256_of_folder
from diffopt.machine.files import open_new_file
from diffopt.machine.interpreter import Interpreter, interpreters, why_interpreter_is_absent
from diffopt.machine.log import last_words_of_log
from diffopt.machine.packages import installed_version
from diffopt.machine.process import Child, how_process_ended
from diffopt.machine.remembered import recall_answers, remember_answers, remembered_file
from diffopt.machine.temporary import temporary_folder
from diffopt.models.index import check_model_files, read_model_index
from diffopt.models.prefetch import cached_folder_of_target, controlnet_target, pipeline_target
from diffopt.models.resolve import model_folder
from diffopt.recipe.cell import Cell
from diffopt.recipe.dry_call import DryAnswer, DryCall, StageFiles, plan_with_dry_answer
from diffopt.recipe.plan import make_plan
from diffopt.recipe.planned import Plan
from diffopt.run.events import CallsStarted, Listener, silent_listener
from diffopt.run.process import OF_WORKERS, clean_environment
from diffopt.schema.model import Model
from diffopt.schema.record import record_identity
from diffopt.version import __version__

WORKER = ("-m", "diffopt.pipeline.dry_call")
MEMORY = "dry_calls"  # a folder in the user's cache
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "accelerate")
DEADLINE_S = 600.0  # for one call, with starting Python; a model of full size takes some ten seconds
LONGEST_ANSWER = 65536  # bytes
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
UNTOLD = frozenset({"name", "id", "revision", "variant", "content", "limits", "quant_skip", "repeated_blocks"})


@dataclass(frozen=True)
class AskedCall:
    """A call to make, and what its answer is kept by."""

    cell: Cell
    files: tuple[StageFiles, ...]
    key: str


def plan_cells(
    cells: Iterable[Cell],
    *,
    deep: bool,
    others: Mapping[str, Interpreter] | None = None,
    listener: Listener = silent_listener,
) -> list[Plan]:
    """The plan of each cell.

    Args:
        deep: call the pipeline of a model that is told by its own files once without weights.
        listener: told before calls are made that are not remembered.
        others: what :func:`interpreters` gave for the cells' runtimes, where that lasts already.
    """
    plans = [_with_note_on_interpreter(make_plan(cell)) for cell in cells]
    wanted = [plan for plan in plans if deep and _is_to_be_called(plan)]
    if not wanted:
        return plans
    with _interpreters(wanted, others) as found:
        answers = _answers([plan.cell for plan in wanted], found, listener)
    said = dict(zip(map(id, wanted), answers, strict=True))
    return [plan_with_dry_answer(plan, said[id(plan)]) if id(plan) in said else plan for plan in plans]


def _with_note_on_interpreter(plan: Plan) -> Plan:
    note = why_interpreter_is_absent(plan.cell.runtime)
    return plan if note is None else replace(plan, notes=(*plan.notes, note))


def _is_to_be_called(plan: Plan) -> bool:
    told = any(stage.told_by_its_files for stage in plan.cell.recipe.model.stages)
    return told and not plan.problems and why_interpreter_is_absent(plan.cell.runtime) is None


def _interpreters(
    plans: Sequence[Plan], others: Mapping[str, Interpreter] | None
) -> AbstractContextManager[Mapping[str, Interpreter]]:
    return interpreters(plan.cell.runtime for plan in plans) if others is None else nullcontext(others)


def _answers(cells: Sequence[Cell], others: Mapping[str, Interpreter], listener: Listener) -> list[DryAnswer]:
    """The answer for each cell, remembered or found now; cells that ask for the same call have the same."""
    asked = [_ask(cell, others.get(cell.runtime.name)) for cell in cells]
    calls = {each.key: each for each in asked if isinstance(each, AskedCall)}
    known = {key: answer for key in calls if (answer := _recall(key)) is not None}
    if len(known) < len(calls):
        listener(CallsStarted(len(calls) - len(known)))
    for runtime in dict.fromkeys(call.cell.runtime.name for key, call in calls.items() if key not in known):
        waiting = [call for key, call in calls.items() if key not in known and call.cell.runtime.name == runtime]
        for call, answer in _made_in_processes(waiting, others.get(runtime)):
            known[call.key] = answer
            if answer.lasting:
                _remember(call.key, answer)
    return [known[each.key] if isinstance(each, AskedCall) else each for each in asked]


def _ask(cell: Cell, there: Interpreter | None) -> AskedCall | DryAnswer:
    """The call that a cell asks for; an answer where its files are not at hand."""
    files, contents = [], []
    for stage in cell.recipe.model.stages:
        found = _files_of_stage(stage)
        if found is None:
            says = "its small files are not all in this machine's cache of the hub; `diffopt prefetch` fetches them"
            return DryAnswer(outcome="unclear", says=says, lasting=False)
        files.append(found[0])
        contents.append(found[1])
    return AskedCall(cell, tuple(files), _key_of_call(cell, files, contents, there))


def _files_of_stage(model: Model) -> tuple[StageFiles, str] | None:
    """The folders of a stage's small files, and a hash of what is in them; None where they are not at hand."""
    folder, beside = model_folder(model), controlnet_target(model)
    cached = folder is None
    if folder is None:
        target = pipeline_target(model)
        folder = None if target is None else cached_folder_of_target(target)
    extra = None if beside is None else cached_folder_of_target(beside)
    if folder is None or (beside is not None and extra is None):
        return None
    try:
        index = read_model_index(folder)
        index = index if model.embeddings is None else index.without_text()
        check_model_files(index, model.weights)
        paths = [
            folder / "model_index.json",
            *(path for name in sorted(index.components) for path in index.config_paths(name)),
        ]
        content = sha256_of_folder(folder, paths)
        if extra is not None:
            content += sha256_of_folder(extra, [extra / "config.json"])
    except UsageError:
        return None  # of a folder of one's own, composing has said so
    return StageFiles(pipeline=str(folder), controlnet=None if extra is None else str(extra), cached=cached), content


def _key_of_call(cell: Cell, files: Sequence[StageFiles], contents: Sequence[str], there: Interpreter | None) -> str:
    """A hash of all that decides the call."""
    workload = record_identity(cell.workload)
    models = [record_identity(stage) for stage in cell.recipe.model.stages]
    data = {
        "contents": list(contents),
        "cached": [each.cached for each in files],
        "models": [{key: value for key, value in model.items() if key not in UNTOLD} for model in models],
        "workload": {key: value for key, value in workload.items() if key != "seed"},
        "scheduler": cell.recipe.scheduler.model_dump(mode="json"),
        "versions": {name: installed_version(name, there) for name in LIBRARIES},
        "diffopt": __version__,
    }
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


def _made_in_processes(calls: Sequence[AskedCall], there: Interpreter | None) -> Iterator[tuple[AskedCall, DryAnswer]]:
    """An answer for each call, from one process; from another one after it where it dies or does not answer."""
    waiting = list(range(len(calls)))
    while waiting:
        with temporary_folder("dry") as folder:
            for number, answer in _made_in_process(calls, tuple(waiting), folder, there):
                waiting.remove(number)
                yield calls[number], answer


def _made_in_process(
    calls: Sequence[AskedCall], waiting: Sequence[int], folder: Path, there: Interpreter | None
) -> Iterator[tuple[int, DryAnswer]]:
    """Those of one process until it ends; where it ends too early, one for the call that it was at."""
    done = 0
    with _start(calls, waiting, folder, there) as child:
        while isinstance(line := child.line(time.monotonic() + DEADLINE_S), bytes):
            told = json.loads(line)
            yield told["number"], DryAnswer.from_plain(told["answer"])
            done += 1
        code = child.end()
    if done < len(waiting):
        says = f"no answer within {DEADLINE_S:g} s" if line == "deadline" else f"its process {how_process_ended(code)}"
        words = last_words_of_log(folder / "log.txt")
        says += f"; it printed at last: {words}" if words else ""
        yield waiting[done], DryAnswer(outcome="unclear", says=says, lasting=False)


def _start(calls: Sequence[AskedCall], waiting: Sequence[int], folder: Path, there: Interpreter | None) -> Child:
    asked = [DryCall(number=number, cell=calls[number].cell, files=calls[number].files) for number in waiting]
    file = folder / "calls.json"
    file.write_text(json.dumps([call.model_dump(mode="json") for call in asked]), encoding="utf-8")
    python, variables = (sys.executable, {}) if there is None else (there.python, there.variables)
    environment = {**clean_environment(None), **OF_WORKERS, **OFFLINE, **variables, "TMPDIR": str(folder)}
    # -P: a file in the user's directory must not stand in for a library
    command = [python, "-P", "-W", "ignore", "-X", "faulthandler", *WORKER, str(file), "--answers-fd"]
    with open_new_file(folder / "log.txt") as log:
        return Child(lambda answers: [*command, str(answers)], log, environment, longest=LONGEST_ANSWER)


def _memory(key: str) -> Path | None:
    """The file of a remembered answer; None for a user without a home."""
    return remembered_file(f"{MEMORY}/{key}.json")


def _recall(key: str) -> DryAnswer | None:
    """The remembered answer; None where there is none that can be read."""
    path = _memory(key)
    known = {} if path is None else recall_answers(path)
    try:
        return DryAnswer.from_plain(known) if known else None
    except ValidationError:
        return None


def _remember(key: str, answer: DryAnswer) -> None:
    if (path := _memory(key)) is not None:
        remember_answers(path, answer.model_dump(mode="json"))
