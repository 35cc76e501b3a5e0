"""A study is its directory: what lies there is the state."""

import os
from concurrent.futures import ProcessPoolExecutor

import pytest
from support.rows import ENVIRONMENT, a_cell, a_result, seeded

from diffopt.errors import UsageError
from diffopt.results.study import Study


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_name_lives_in_studies_and_is_continued(tmp_path):
    study = Study.create("mine")
    study.keep(a_result())
    assert (tmp_path / "studies/mine/cells").is_dir()
    assert Study.create("mine").results() == Study.open("mine").results() == (a_result(),)


def test_a_path_is_a_path(tmp_path):
    study = Study.create("./there")
    study.keep(a_result())
    assert (tmp_path / "there/cells").is_dir()
    assert Study.open(tmp_path / "there").results() == (a_result(),)


def test_opening_nothing_names_the_studies_that_there_are():
    with pytest.raises(UsageError, match="There is none in studies/ yet"):
        Study.open("mine")
    Study.create("yours")
    with pytest.raises(UsageError, match="studies/ has yours"):
        Study.open("mine")


@pytest.mark.parametrize("name", ["", "a b", ".hidden", "a\\b"])
def test_a_name_is_a_plain_word(name):
    with pytest.raises(UsageError, match="letters, digits"):
        Study.create(name)


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").touch()
    with pytest.raises(UsageError, match="other files"):
        Study.create("./photos")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made into a study"):
        Study.create("./file")


def test_fresh_studies_of_the_same_second_differ():
    assert len({Study.fresh().path for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("status", "phase", "final"),
    [
        ("ok", "measure", True),
        ("oom", "compile", True),
        ("refused", "plan", True),
        ("refused", "load", False),
        ("refused", "optimize", False),
        ("error", "measure", False),
        ("crashed", "load", False),
        ("timeout", "compile", False),
        ("interrupted", "warmup", False),
    ],
)
def test_what_is_kept(status, phase, final):
    study, result = Study.create("mine"), a_result(status=status, phase=phase)
    assert study.row(result.cell_id, result.env_id) is None
    study.keep(result)
    assert study.row(result.cell_id, result.env_id) == result
    assert result.final == final
    assert not a_result(status="ok", valid=False).final
    assert study.row(result.cell_id, "another_env") is None


def test_what_an_ended_process_left_is_not_a_row():
    study, result = Study.create("mine"), a_result()
    study.keep(result)
    (study.folder(result.cell_id, result.env_id) / ".result.json.7.abcd.tmp").write_text('{"schema')
    study.folder("half", "done").mkdir(parents=True)
    assert study.results() == (result,)


def test_a_foreign_row_is_named():
    study, result = Study.create("mine"), a_result()
    study.keep(result)
    path = study.folder(result.cell_id, result.env_id) / "result.json"
    path.write_text("{}")
    for read in (study.results, lambda: study.row(a_cell().id, ENVIRONMENT.id)):
        with pytest.raises(UsageError, match=r"result\.json"):
            read()


def test_one_who_is_told_of_a_foreign_row_gets_the_others():
    study, damaged, whole = Study.create("mine"), a_result(), a_result(seeded(5))
    for result in (damaged, whole):
        study.keep(result)
    (study.folder(damaged.cell_id, damaged.env_id) / "result.json").write_text('{"schema_version": 99}')
    told = []
    assert study.results(told.append) == (whole,)
    assert "schema version 99" in str(told[0])
    assert "It stays as it is" in str(told[0])


def _write(seeds):
    study = Study.create("shared")
    for seed in seeds:
        study.keep(a_result(seeded(seed)))


def test_processes_write_different_cells_at_once():
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_write, [range(0, 40), range(40, 80)]))
    assert len(Study.open("shared").results()) == 80


def test_a_claimed_cell_is_waited_for(tmp_path):
    study = Study.create(tmp_path / "s")
    waits = []

    def wait(seconds):
        waits.append(seconds)
        return len(waits) < 3

    with study.claim("a" * 12, "b" * 12, wait) as first:
        assert first
        with study.claim("a" * 12, "b" * 12, wait) as second:
            assert not second
        with study.claim("c" * 12, "b" * 12, wait) as other:
            assert other
    assert len(waits) == 3
    with study.claim("a" * 12, "b" * 12, wait) as again:
        assert again


def test_a_study_is_its_users_alone(tmp_path):
    before = os.umask(0)
    try:
        study = Study.create("mine")
        with study.claim("a" * 12, "b" * 12, lambda seconds: False):
            study.keep(a_result())
    finally:
        os.umask(before)
    made = [tmp_path / "studies", *(tmp_path / "studies").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o700}
    assert [path.name for path in made if path.is_file()] != []
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o600}


def test_cells_that_were_begun_and_have_no_row(tmp_path):
    study = Study.create(tmp_path / "s")
    for cell, files in {"a" * 12: ["cell.yaml"], "b" * 12: ["cell.yaml", "result.json"]}.items():
        folder = study.folder(cell, "e" * 12)
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).touch()
    assert study.unfinished() == ("a" * 12,)


def test_where_no_study_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").touch()
    with pytest.raises(UsageError, match="study=/a/path"):
        Study.fresh()
    for name in ("~nosuch/x", "x" * 300, "./" + "y" * 300):
        with pytest.raises(UsageError, match="study"):
            Study.create(name)
