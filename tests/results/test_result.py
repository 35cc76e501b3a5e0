"""result.json: exact keys, whole or not at all, and a clear word about files that are none."""

import json
import os
import stat

import pytest
from support.rows import a_result

from diffopt.errors import UsageError
from diffopt.machine.files import write_json
from diffopt.results.result import Latency, Metrics, PeakMemory, StageSpeed, read_result

KEYS = {
    *("schema_version", "cell_id", "env_id", "recipe_id", "status", "stage", "reason", "valid", "choices", "cell"),
    *("effects", "metrics", "environment", "artifacts", "seconds"),
}
METRICS = {
    *("load_s", "first_call_s", "warmup_s", "latency_s", "stages", "images_per_second", "split_s"),
    *("peak_memory_bytes", "peak_reserved_bytes", "compile_cache"),
    "starts",
}


def test_the_keys_are_frozen():
    data = a_result().model_dump(mode="json")
    assert data.keys() == KEYS
    assert data["metrics"].keys() == METRICS
    for key in ("peak_memory_bytes", "peak_reserved_bytes"):
        assert data["metrics"][key] == {"first_call": None, "steady": None}
    assert data["metrics"]["compile_cache"] is None


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


def test_the_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "result.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result.json").stat().st_mode) == 0o640
