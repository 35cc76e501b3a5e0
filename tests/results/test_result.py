"""result.json: exact keys, whole or not at all, and a clear word about files that are none."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rows import a_result

from diffopt.errors import UsageError
from diffopt.machine.files import write_json
from diffopt.results.result import Latency, Metrics, PeakMemory, Result, StageSpeed
from diffopt.results.row_files import read_result
from diffopt.schema.words import flatten_to_dotted_keys

SCHEMA = Result.model_json_schema(mode="serialization")
GOLDEN = Path(__file__).with_name("result_schema.txt")


def schema_lines(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """One line per value of a row: its path and its types; lists have ``[]``, mappings ``.*``."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        for choice in schema["anyOf"]:
            yield from schema_lines(choice, path)
    elif "properties" in schema:
        for name, inner in schema["properties"].items():
            yield from schema_lines(inner, f"{path}.{name}".lstrip("."))
    elif "items" in schema:
        yield from schema_lines(schema["items"], f"{path}[]")
    elif isinstance(schema.get("additionalProperties"), dict):
        yield from schema_lines(schema["additionalProperties"], f"{path}.*")
    else:
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        yield f"{path}: {schema['type'] if values is None else ', '.join(map(str, values))}"


def test_the_schema_is_frozen(update_golden):
    """Rows must be readable for as long as the schema version stays. Change it deliberately: --update-golden."""
    text = "".join(f"{line}\n" for line in dict.fromkeys(schema_lines(SCHEMA)))
    if update_golden:
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_the_schema_is_what_is_written():
    known = {line.partition(":")[0] for line in GOLDEN.read_text().splitlines()}
    data = a_result().model_dump(mode="json") | {"cell": {}}
    written = {path for path, value in flatten_to_dotted_keys(data) if value not in (None, (), [], {})}
    assert "environment.device.memory_bytes" in written
    assert {path for path in written if path not in known and f"{path.rpartition('.')[0]}.*" not in known} == set()


def test_what_is_written_is_read_back(tmp_path):
    result = a_result(
        metrics=Metrics(
            latency_s=Latency(samples=(1.0, 2.5, 3.0), median=2.5, q1=1.75, q3=2.75),
            stages=(StageSpeed(name="denoise", steps=8, iterations_per_second=3.2),),
            peak_memory_bytes=PeakMemory(first_call=2**31, steady=2**30),
        )
    )
    path = tmp_path / "result.json"
    write_json(path, result.model_dump(mode="json"))
    assert read_result(path) == result


def test_a_row_of_0_1_0_which_says_stage_is_read_and_written_as_phase(tmp_path):
    result = a_result(status="oom", phase="compile", valid=False)
    data = result.model_dump(mode="json")
    old = {"stage" if key == "phase" else key: value for key, value in data.items()}
    assert old["stage"] == data["phase"] == "compile"
    write_json(tmp_path / "result.json", old)
    assert read_result(tmp_path / "result.json") == result
    assert read_result(tmp_path / "result.json").model_dump(mode="json") == data


def test_a_row_says_phase_or_stage_and_not_both(tmp_path):
    data = a_result().model_dump(mode="json")
    write_json(tmp_path / "result.json", data | {"stage": data["phase"]})
    with pytest.raises(UsageError, match="stage: Extra inputs"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read as a result"),
        ('{"status": "ok"', "cannot be read as a result"),
        ("[1, 2]", "not a result of diffopt"),
        ('{"schema_version": 1, "status": "ok"}', "cell_id"),
        ('{"schema_version": 2}', "schema version 2"),
        ("\xff\xfe", "cannot be read as a result"),
    ],
)
def test_other_files_are_named_and_explained(tmp_path, text, says):
    path = tmp_path / "result.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=says) as caught:
        read_result(path)
    assert str(path) in str(caught.value)


def test_an_unknown_status_is_not_a_result(tmp_path):
    data = a_result().model_dump(mode="json") | {"status": "fine"}
    write_json(tmp_path / "result.json", data)
    with pytest.raises(UsageError, match="status"):
        read_result(tmp_path / "result.json")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "result.json", {"latency": float("nan")})
    assert list(tmp_path.iterdir()) == []
