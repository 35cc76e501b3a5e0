"""Calls pipelines once without their weights: ``python -m diffopt.pipeline.dry_call CALLS --answers-fd N``.

``CALLS`` is a JSON list of DryCall. For each it writes a DryAnswer, a JSON object a line, to the descriptor. No weights
are read and nothing is downloaded; what fails for want of values alone is no fault of the model, and unclear.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from diffopt.errors import DiffoptError, Refusal
from diffopt.machine import packages
from diffopt.models import calls
from diffopt.models.index import IndexEntry
from diffopt.models.random.weights import weightless_component, weightless_pipeline
from diffopt.pipeline import load
from diffopt.pipeline.build import apply_steps
from diffopt.pipeline.failure import describe_pipeline_error
from diffopt.pipeline.misfits import misfit_in_words, network_call_in_words
from diffopt.pipeline.weightless import Networks, TooLarge
from diffopt.recipe.cell import Cell
from diffopt.recipe.dry_call import DryAnswer, DryCall, StageFiles
from diffopt.schema.step import Site, Step
from diffopt.schema.words import value_in_words

# What is said of tensors without values, and of too little memory.
WITHOUT_VALUES = re.compile(r"\bmeta\b|data-dependent|not implemented for|allocate memory|not enough memory", re.I)
WANTING = (NotImplementedError, MemoryError, TooLarge)
FIT = "take parts that were made for each other, such as a folder that `save_pretrained` wrote and nobody changed"
ELSE = "mend the pipeline's files"


class Attempt:
    """One call, and where it ended."""

    def __init__(self, asked: DryCall, cell: Cell, *, sampler: bool = True) -> None:
        self._asked, self._cell, self._sampler = asked, cell, sampler
        self.networks = Networks()
        self.loading = self.sampling = False
        self.pipeline = ""

    def make(self) -> None:
        """Load, put the sampler in, and call. Raises whatever the libraries raise."""
        self.loading = True
        pipes = [self._loaded(site, index) for index, site in enumerate(self._cell.sites)]
        self.loading = False
        for pipe, site in zip(pipes, self._cell.sites, strict=True) if self._sampler else ():
            self.sampling = True
            apply_steps(pipe, _sampler_of_cell(self._cell), site)
        self.sampling = False
        stages = calls.calls_of_models(pipes, self._cell.recipe.model.stages, self._cell.workload)
        with self.networks.standing_in(pipes):
            self._draw(stages)

    def _draw(self, stages: Sequence[calls.Stage]) -> None:
        try:
            calls.draw_pictures(stages)
        except TooLarge:  # the last network has been called; what comes of it is a matter of memory
            if (call := self.networks.failed) is None or call.method != "decode":
                raise

    def _loaded(self, site: Site, index: int) -> Any:
        model, files = site.model, self._asked.files[index]
        task = model.task if index else self._cell.workload.task
        cls = load.diffusers_class(getattr(model.pipelines, task), "DiffusionPipeline")
        self.pipeline = cls.__name__
        load.check_packages_of_pipeline(cls)
        folder = Path(files.pipeline)
        pipe = weightless_pipeline(
            folder,
            cls,
            without=load.absent_parts(model, folder),
            made_tokenizers=model.weights != "pretrained",
            controlnet=_controlnet_of_stage(site, files),
        )
        load.refuse_unknown_parts(model, pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _controlnet_of_stage(site: Site, files: StageFiles) -> Any:
    if files.controlnet is None or site.model.controlnet is None:
        return None
    return weightless_component(Path(files.controlnet), IndexEntry("diffusers", site.model.controlnet.class_name))


def _sampler_of_cell(cell: Cell) -> list[tuple[str, Step]]:
    return [("scheduler", cell.recipe.scheduler)]


def answer_dry_call(asked: DryCall) -> DryAnswer:
    """Make one call; whatever it raises becomes the answer."""
    if (lacking := packages.reason_of_lacking([asked.cell.recipe.scheduler.requires()])) is not None:
        return DryAnswer(outcome="unclear", says=lacking, lasting=False)
    attempt = Attempt(asked, asked.cell)
    try:
        attempt.make()
    except Exception as error:  # the border of the process: beyond it there are only answers
        traceback.print_exc()
        return _unclear(asked, attempt, error) or _failed(asked, attempt, error)
    return DryAnswer(outcome="ok")


def _unclear(asked: DryCall, attempt: Attempt, error: BaseException) -> DryAnswer | None:
    """The answer where the error says nothing of the model: for want of values, files, packages or memory."""
    said = describe_pipeline_error(error)
    if any(isinstance(each, WANTING) or WITHOUT_VALUES.search(str(each)) for each in _chain(error)) or _is_ours(error):
        return DryAnswer(outcome="unclear", says=said, lasting=not isinstance(error, MemoryError))
    cached = any(files.cached for files in asked.files)  # where some may be missing, whatever the library says of it
    absent = isinstance(error, ImportError | NameError)  # diffusers leaves out the import of what is not here
    if absent or (attempt.loading and (cached or isinstance(error, Refusal))):
        return DryAnswer(outcome="unclear", says=said, lasting=False)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_ours(error: BaseException) -> bool:
    """Whether the error comes of how networks stand in for those with weights, and not of what torch found."""
    frames = traceback.extract_tb(error.__traceback__)
    own = frames[-1].filename == str(Path(__file__).with_name("weightless.py"))
    return own and frames[-1].name not in ("__torch_dispatch__", "_check_ids")


def _failed(asked: DryCall, attempt: Attempt, error: BaseException) -> DryAnswer:
    said = describe_pipeline_error(error)
    if attempt.sampling and isinstance(error, DiffoptError):
        return DryAnswer(outcome="fails", says=said, keys=("scheduler",), remedy="choose another scheduler")
    if attempt.loading:
        says = f"{attempt.pipeline or 'its pipeline'} cannot be made of its files: {said}"
        return DryAnswer(outcome="fails", says=says, remedy=ELSE)
    call = attempt.networks.failed
    where = f"{attempt.pipeline} fails" if call is None else f"{network_call_in_words(call)} fails"
    says = f"called once without weights, {where}: {said}"
    if (blamed := _blamed(asked)) is not None:
        return DryAnswer(outcome="fails", says=says, keys=blamed[0], remedy=blamed[1])
    misfit = None if call is None else misfit_in_words(call)
    remedy = ELSE if call is None else FIT if misfit is None else f"{misfit}: {FIT}"
    return DryAnswer(outcome="fails", says=says, remedy=remedy)


def _blamed(asked: DryCall) -> tuple[tuple[str, ...], str] | None:
    """What of the cell the failure comes of, and what would do instead: the first change with which the call works."""
    for keys, remedy, attempt in _changes_to_try(asked):
        try:
            attempt.make()
        except Exception:  # not this one
            continue
        return keys, remedy
    return None


def _changes_to_try(asked: DryCall) -> Iterator[tuple[tuple[str, ...], str, Attempt]]:
    """What a user may have chosen, the model's own in its place: keys, what it would mean, the call to try."""
    cell, model, workload = asked.cell, asked.cell.recipe.model, asked.cell.workload
    if cell.recipe.scheduler.kind != "none":
        remedy = "choose another scheduler: with the model's own it works"
        yield ("scheduler",), remedy, Attempt(asked, cell, sampler=False)
    fewest = None if workload.frames is None else 1 + (model.frame_step or 0)
    for values in (
        {"height": model.height, "width": model.width},
        {"frames": fewest},
        {"batch_size": 1},
        {"negative_prompt": ""},
        {"guidance": model.guidance},
        {"steps": model.steps},
    ):
        given = {name: getattr(workload, name) for name in values}
        if given != values:
            keys = tuple(f"workload.{name}={value_in_words(value)}" for name, value in given.items())
            words = " and ".join(f"workload.{name}={value_in_words(value)}" for name, value in values.items())
            changed = cell.model_copy(update={"workload": workload.model_copy(update=values)})
            yield keys, f"with {words} it works", Attempt(asked, changed)


def answer_dry_calls(arguments: Sequence[str] | None = None) -> None:
    """Answer each call and leave; never returns to the caller."""
    parser = argparse.ArgumentParser(prog="python -m diffopt.pipeline.dry_call", description="Calls without weights.")
    parser.add_argument("calls", type=Path)
    parser.add_argument("--answers-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    os.set_inheritable(options.answers_fd, False)
    torch.set_num_threads(1)  # there is little to compute, and others may be measuring
    for data in json.loads(options.calls.read_text(encoding="utf-8")):
        asked = DryCall.from_plain(data)
        answer = {"number": asked.number, "answer": answer_dry_call(asked).model_dump(mode="json")}
        os.write(options.answers_fd, json.dumps(answer).encode() + b"\n")
    os._exit(0)  # taking torch apart takes seconds


if __name__ == "__main__":
    answer_dry_calls()
