"""Frozen records, and the ids that are made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


def record_digest(data: dict[str, Any]) -> str:
    """The id of plain data: first 12 hex digits of the SHA-256 of its canonical YAML.

    Canonical is YAML's flow style with sorted keys, which is JSON: one spelling for everything, on every machine.
    """
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class Frozen(BaseModel):
    """A record read from YAML: immutable, hashable, no unknown keys, no silent conversions (``true`` is not 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def from_plain(cls, data: Any) -> Self:
        """The record of plain data, whose lists stand for tuples and whose texts for dates, as in YAML and JSON.

        Raises ValidationError for what it cannot be. Strict: what is given is what counts, nothing is converted.
        """
        return cls.model_validate_json(json.dumps(data))


@dataclass(frozen=True)
class Descriptive:
    """Marks a field, as ``Annotated[…, Descriptive()]``, that describes and decides nothing: no part of any id.

    A corrected figure of a data sheet must not part a study from its rows.
    """


@cache
def descriptive_fields(cls: type[Frozen]) -> frozenset[str]:
    """Names of the fields of a record that only describe."""
    fields = cls.model_fields.items()
    return frozenset(name for name, field in fields if any(isinstance(mark, Descriptive) for mark in field.metadata))


def record_identity(record: Frozen) -> dict[str, Any]:
    """The record as plain data, as far as it says what was asked; what ids are made of.

    Left out, at every depth: descriptive fields, and fields at their default, which were added after a release (their
    records keep their ids).
    """
    return _record_identity(record, record.model_dump(mode="json"))


def _record_identity(record: Frozen, dumped: Mapping[str, Any]) -> dict[str, Any]:
    cls = type(record)
    asked = {name: getattr(record, name) for name in cls.model_fields if name not in descriptive_fields(cls)}
    return {
        name: _identity(value, dumped[name])
        for name, value in asked.items()
        if (field := cls.model_fields[name]).is_required() or value != field.get_default(call_default_factory=True)
    }


def _identity(value: Any, dumped: Any) -> Any:
    if isinstance(value, Frozen):
        return _record_identity(value, dumped)
    if isinstance(value, tuple):
        return [_identity(part, plain) for part, plain in zip(value, dumped, strict=True)]
    if isinstance(value, Mapping):
        return {key: _identity(part, dumped[str(key)]) for key, part in value.items()}
    return dumped
