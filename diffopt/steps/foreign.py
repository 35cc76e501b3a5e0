"""Steps of plug-ins, asked with care: whatever goes wrong in one is told by the plug-in's name.

What diffopt asks a step while it plans passes through here once a plug-in has registered it. An exception, or an answer
of another type than promised, is a :class:`PluginFails`: the cells that need the step are refused, all others go on.
What a step does to a pipeline it does in a worker, whose row says how that failed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationError, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from diffopt.errors import Refusal
from diffopt.schema.model import Dtype
from diffopt.schema.step import Requirements, Step, Trait
from diffopt.schema.words import one_line

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ANSWERS: dict[str, Any] = {  # of the methods that planning calls, and of one property
    "traits": frozenset[Trait],
    "traits_on": frozenset[Trait],
    "requires": Requirements,
    "problems": tuple[str, ...],
    "dtype_of": Dtype,
    "weight_bytes": Amount | None,
    "on_device": Amount,
    "activation_share": Amount,
}
LONGEST = 300  # letters of what a plug-in says of its failure


class PluginFails(Refusal):
    """A step of a plug-in that cannot be asked."""

    def __init__(self, step: type[Step], text: str) -> None:
        super().__init__(text)
        self.step = step


def ask_with_care(step: type[Step], plugin: str) -> None:
    """Let a class tell its failures by the name of its plug-in; what is diffopt's own in it stays as it is."""
    for name, promised in ANSWERS.items():
        theirs = getattr(step, name)
        if theirs is getattr(Step, name):
            continue
        if isinstance(theirs, property):
            setattr(step, name, property(_careful(step, name, theirs.fget, promised, plugin)))  # type: ignore[arg-type]
        else:
            setattr(step, name, _careful(step, name, theirs, promised, plugin))
    _validate_with_care(step, plugin)


def _careful(step: type[Step], name: str, theirs: Callable[..., Any], promised: Any, plugin: str) -> Callable[..., Any]:
    adapter = TypeAdapter(promised)

    @functools.wraps(theirs)
    def asked(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = theirs(*args, **kwargs)
            if isinstance(answer, Requirements):
                answer = _with_plain_values(answer)
            return adapter.validate_python(answer)
        except PluginFails:
            raise
        except ValidationError as error:
            said = f"gives what it must not: {error.errors(include_url=False)[0]['msg']}"
        except (Exception, SystemExit) as error:  # the border to code of others: its mistakes must not become ours
            said = _raised(error)
        raise PluginFails(step, f"{plugin} fails: {step.__name__}.{name} {said}")

    return asked


def _validate_with_care(step: type[Step], plugin: str) -> None:
    """Make what validators of its own raise a mistake in the values, as pydantic does with a ValueError alone."""

    own = step.__pydantic_validator__

    def validated(value: Any, handler: core_schema.ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:  # a handler takes what comes from JSON for Python's, whose lists are no tuples
            return own.validate_json(json.dumps(value)) if info.mode == "json" else handler(value)
        except (ValueError, AssertionError):  # ValidationError is one
            raise
        except (Exception, SystemExit) as error:
            text = f"{plugin} fails: validating {step.__name__} {_raised(error)}"
        raise ValueError(text)

    def schema(cls: type[Step], source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_wrap_validator_function(validated, handler(source))

    step.__get_pydantic_core_schema__ = classmethod(schema)  # type: ignore[assignment,method-assign]


def _with_plain_values(answer: Requirements) -> dict[str, Any]:
    """What is validated anew; an object of the class is taken as it is. Raises ValueError for what names no package."""
    from packaging.requirements import Requirement  # here for start-up time

    for text in answer.packages:
        Requirement(text)
    return asdict(answer)


def _raised(error: BaseException) -> str:
    text = one_line(error)
    return f"raises {type(error).__name__}: {text if len(text) <= LONGEST else text[: LONGEST - 3] + '...'}"
