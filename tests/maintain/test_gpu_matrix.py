"""scripts/gpu_matrix: its list, its estimates, ending in time, going on; workers are stubs but in one slow test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from support.nvml import fake_pynvml
from support.places import REPO
from support.processes import use_stub
from support.rows import a_result

from diffopt.errors import UsageError
from diffopt.machine.environment import environment
from diffopt.recipe.plan import make_plan
from diffopt.results.study import Study
from scripts.maintain.gpu_matrix import main as gpu_matrix
from scripts.maintain.gpu_matrix import run as gpu_matrix_run
from scripts.maintain.gpu_matrix.cells import SHIPPED, Point, folder_name, points, read_matrix, standing
from scripts.maintain.gpu_matrix.files import pack, write_tables
from scripts.maintain.gpu_matrix.run import RESERVE_S, START_S, Budget, estimated
from scripts.maintain.gpu_matrix.times import AFTER_CUTS, MARGIN, ONCE_MORE, Time, Times


@pytest.fixture(autouse=True)
def _in_an_empty_folder_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(gpu_matrix, "RESULTS", Path("docs/results"))


def a_list(*cells, common=("model=tiny", "measure=quick")):
    """A list file; each cell is its seconds and words."""
    data = {"common": list(common), "cells": [{"seconds": s, "words": list(words)} for s, *words in cells]}
    path = Path("cells.json")
    path.write_text(json.dumps(data))  # JSON is YAML
    return path


def stubbed_points(*modes, seconds=1.0):
    cells = [(seconds, f"workload.negative_prompt={mode}", f"workload.seed={i}") for i, mode in enumerate(modes)]
    return points(read_matrix(a_list(*cells)), ["hardware=cpu", "launch.grace=0.1"])


def budget(seconds):
    """So many seconds for cells."""
    return Budget(time.monotonic() + RESERVE_S + 0.1 + seconds)


def run(todo, study, budget, out):
    return gpu_matrix_run.run(todo, study, budget, out, "scripts/gpu_matrix --minutes 1")


def elsewhere(**changes):
    """An environment nearly as this one: another driver or package, or as the changes say."""
    here = environment("cpu")
    device = here.device.model_copy(update={"name": changes.pop("device", here.device.name)})
    return here.model_copy(update={"versions": {**here.versions, "triton": "0", **changes}, "device": device})


def row(point, where=None, **changes):
    where = where or environment("cpu")
    return a_result(point.cell, environment=where, env_id=where.id, **changes)


# --- the list


@pytest.fixture(scope="module")
def shipped():
    return points(read_matrix(SHIPPED), ["hardware=h100"])


def test_every_shipped_cell_works_on_an_h100(shipped):
    assert len(shipped) == len(read_matrix(SHIPPED).cells)  # no two are the same cell
    for point in shipped:
        assert not make_plan(point.cell).reasons, point.words
        assert {stage.weights for stage in point.cell.recipe.model.stages} == {"random"}, point.words


def test_the_most_valuable_come_first_and_video_last(shipped):
    first, models = shipped[0].cell, [point.cell.recipe.model.name for point in shipped]
    assert (first.recipe.model.name, first.recipe.compile.kind, first.recipe.quant.kind) == ("sd15", "none", "none")
    assert models[-2:] == ["ltx_video", "wan21_t2v_1_3b"]
    assert models.index("sdxl") < models.index("flux_dev") < models.index("deepfloyd_if")


def test_every_shipped_cell_fits_into_nine_minutes(shipped, tmp_path):
    ends = Budget(time.monotonic() + 9 * 60 - START_S)
    for point in shipped:
        assert estimated(point, Times(tmp_path)) <= ends.seconds_left(point.request.launch.grace), point.words


def test_the_ladder_is_whole_and_measured_alike(shipped):
    from diffopt.config.resolve import requests

    page = requests(["sweep=accelerate_inference", "hardware=h100", "model.weights=random"], multirun=True)
    recipes = {point.cell.recipe.id: point.cell for point in shipped if point.cell.workload == page[0].cell.workload}
    assert len(page) == 6
    rungs = [recipes[request.cell.recipe.id] for request in page]
    assert len({rung.measure.model_dump_json() for rung in rungs}) == 1


def test_cells_of_the_pages_sweep_have_its_ids(shipped):
    from diffopt.config.resolve import requests

    words = ["model=sd15", "workload.batch_size=1,4", "compile=none,reduce_overhead", "precision=fp16"]
    page = ["layout=channels_last_denoiser", "hardware=h100", "model.weights=random"]
    wanted = {request.cell.id for request in requests([*words, *page], multirun=True)}
    assert len(wanted) == 4
    assert wanted <= {point.cell.id for point in shipped}


def test_words_of_the_command_line_win():
    (point,) = points(read_matrix(a_list((1, "workload.steps=3"))), ["workload.steps=2", "hardware=cpu"])
    assert point.cell.workload.steps == 2


@pytest.mark.parametrize(
    "text", ["cells: []", "common: []\ncells: [{words: [model=tiny]}]", "common: []\ncells: [{words: [], seconds: 0}]"]
)
def test_a_bad_list_is_a_usage_error(tmp_path, text, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert gpu_matrix.main(["--minutes", "1", "--cells", str(path)]) == 2
    assert "bad.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hardware", "name"),
    [("h100", "nvidia-h100"), ("nvidia_rtx_a6000", "nvidia-rtx-a6000"), ("rtx3090", "nvidia-rtx3090"), ("cpu", "cpu")],
)
def test_the_study_is_named_after_the_gpu(hardware, name):
    assert folder_name(hardware) == name


def test_what_was_cut_off_comes_before_what_failed():
    todo = stubbed_points("ok", "error", "oom", "hang", "sigkill")
    ids = [point.cell.id for point in todo]
    rows = [row(p, status=s) for p, s in zip(todo, ("ok", "error", "oom", "interrupted"), strict=False)]
    now = standing(todo, rows, environment("cpu"))
    assert now.waiting == (todo[3], todo[4], todo[1])
    assert list(now.done) == [ids[0], ids[2]]


def test_a_row_from_nearly_here_is_made_anew_at_the_end():
    todo = stubbed_points("ok", "error", "ok", "ok", "ok", "ok")
    there = elsewhere()
    rows = [
        row(todo[0], there),
        row(todo[1], there, status="error"),
        row(todo[2], elsewhere(torch="1.0")),
        row(todo[3], elsewhere(device="Another GPU")),
        *(row(todo[5], there), row(todo[5])),
    ]
    now = standing(todo, rows, environment("cpu"))
    assert now.waiting == (todo[2], todo[3], todo[4], todo[1], todo[0])
    assert list(now.done) == [todo[5].cell.id]
    assert standing(todo, rows, None).waiting == (todo[4], todo[1])  # no such GPU here


# --- estimates


def test_estimates_follow_the_rows(tmp_path):
    times = Times(tmp_path)
    assert times.estimate("a", "sdxl", 100) == 100 * MARGIN
    times.note("a", Time(model="sd15", prior=100, seconds=150, status="ok"))
    assert times.estimate("b", "sd15", 100) == pytest.approx(150 * MARGIN)  # same model
    assert times.estimate("b", "sdxl", 100) == pytest.approx(150 * MARGIN)  # slower than thought, so others may be
    assert times.estimate("a", "sd15", 100) == pytest.approx(150 * MARGIN)
    times.note("c", Time(model="sdxl", prior=100, seconds=50, status="ok"))
    assert times.estimate("d", "sdxl", 100) == pytest.approx(50 * MARGIN)
    times.note("e", Time(model="sdxl", prior=10, seconds=500, status="error"))  # says nothing of others
    assert times.estimate("d", "sdxl", 100) == pytest.approx(50 * MARGIN)
    assert times.estimate("c", "sdxl", 100) == pytest.approx(50 * MARGIN)


def test_what_was_cut_off_is_tried_once_more_in_that_time(tmp_path):
    cut = Time(model="sdxl", prior=100, seconds=300, status="interrupted")
    Times(tmp_path).note("d", cut)
    assert Times(tmp_path).estimate("d", "sdxl", 100) == 300 * ONCE_MORE < 300
    Times(tmp_path).note("d", cut)
    assert Times(tmp_path).estimate("d", "sdxl", 100) == 300 * AFTER_CUTS
    Times(tmp_path).note("d", cut.model_copy(update={"status": "ok"}))
    Times(tmp_path).note("d", cut)
    assert Times(tmp_path).estimate("d", "sdxl", 100) == 300 * ONCE_MORE


def test_unreadable_times_are_a_usage_error(tmp_path):
    (tmp_path / "times.json").write_text('{"a": {"seconds": 1}}')
    with pytest.raises(UsageError, match=r"times\.json"):
        Times(tmp_path)


# --- running


def test_it_runs_continues_and_packs(monkeypatch, capsys):
    use_stub(monkeypatch)
    todo, study, out = stubbed_points("ok", "error", "ok"), Study.create(Path("results/gpu")), Path("out")
    assert run(todo[:1], study, budget(60), out) == ["ok"]
    assert run(todo, study, budget(60), out) == ["error", "ok"]
    assert run(todo, study, budget(60), out) == ["error"]
    assert "3 cells, 2 have their row" in capsys.readouterr().out
    assert len(study.results()) == 3
    table = (study.path / "table.md").read_text()
    assert table.startswith("# gpu\n")
    (made,) = [line for line in table.splitlines() if "made by" in line]
    here = environment("cpu")
    assert made.startswith(f"- {here.device.name}: python {here.versions['python']}")
    assert made.endswith("made by `scripts/gpu_matrix --minutes 1`")
    assert table.count("| ok     |") == 2
    assert table.count("| error  |") == 1
    assert (study.path / "table.csv").read_text().count("\n") == 4
    with tarfile.open(out / "gpu.tar.gz") as tar:
        names = tar.getnames()
    assert sum(name.endswith("result.json") for name in names) == 3
    assert sum(name.endswith("log.txt") for name in names) == 1  # of the row that failed
    assert {"gpu/table.md", "gpu/table.csv", "gpu/times.json", "gpu/calls.json"} <= set(names)
    assert not [name for name in names if name.endswith((".png", "cell.yaml"))]


def test_the_pack_continues_elsewhere(monkeypatch, tmp_path):
    use_stub(monkeypatch)
    todo, study = stubbed_points("ok", "ok"), Study.create(Path("results/gpu"))
    run(todo[:1], study, budget(60), Path("out"))
    with tarfile.open("out/gpu.tar.gz") as tar:
        tar.extractall("elsewhere", filter="data")
    assert run(todo, Study.create(Path("elsewhere/gpu")), budget(60), None) == ["ok"]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    study = Study.create(tmp_path / "gpu")
    study.keep(a_result())
    write_tables(study)
    first = pack(study, tmp_path / "out").read_bytes()
    assert pack(study, tmp_path / "out").read_bytes() == first


def test_what_does_not_fit_is_not_started(monkeypatch, capsys):
    use_stub(monkeypatch)
    long, short = stubbed_points("ok", "ok", seconds=100)
    short = Point(short.entry.model_copy(update={"seconds": 1.0}), short.request)
    assert run([long, short], Study.create(Path("s/gpu")), budget(60), None) == ["ok"]
    out = capsys.readouterr().out
    assert "1 cells are left for other calls" in out
    assert f"  2.3  {long.words}" in out  # 100 s and a fifth; 10 s, 5 s and 0.1 s around it
    assert run([long], Study.create(Path("s/gpu")), budget(-1), None) == []


def test_what_does_not_end_is_cut_off_in_time(monkeypatch):
    use_stub(monkeypatch)
    todo, study = stubbed_points("hang", seconds=0.1), Study.create(Path("s/gpu"))
    before = signal.getsignal(signal.SIGTERM)
    ends = budget(1.5)
    assert run(todo, study, ends, None) == ["interrupted"]
    assert time.monotonic() < ends.end
    assert signal.getsignal(signal.SIGTERM) is before
    assert [row.status for row in study.results()] == ["interrupted"]
    assert run(todo, study, budget(0.3), None) == []  # less than it had
    assert run(todo, study, budget(2.5), None) == ["interrupted"]  # once more, for the caches are warm
    assert run(todo, study, budget(1.5), None) == []  # it is known to take longer


def test_compile_caches_lie_with_the_study(monkeypatch, tmp_path):
    use_stub(monkeypatch)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    study = Study.create(Path("s/gpu"))
    found = []
    monkeypatch.setattr(gpu_matrix_run, "_one", lambda *args: found.append(dict(os.environ)) or "ok")
    assert run(stubbed_points("ok"), study, budget(60), Path("out")) == ["ok"]
    (seen,) = found
    assert seen["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "s/gpu/compile-cache/inductor")
    assert seen["TRITON_CACHE_DIR"] == os.environ["TRITON_CACHE_DIR"] == "mine"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert (study.path / "compile-cache/.gitignore").read_text() == "*\n"


def test_a_row_that_cannot_be_read_counts_as_none(monkeypatch, capsys):
    use_stub(monkeypatch)
    todo, study = stubbed_points("ok", "ok"), Study.create(Path("s/gpu"))
    assert run(todo, study, budget(60), None) == ["ok", "ok"]
    broken = study.folder(todo[0].cell.id, environment("cpu").id) / "result.json"
    broken.write_text("{")
    foreign = study.path / "cells/a/b/result.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("{")
    capsys.readouterr()
    assert run(todo, study, budget(60), Path("out")) == ["ok"]
    told = capsys.readouterr().err
    assert [told.count(str(path)) for path in (broken, foreign)] == [1, 1]
    assert json.loads(broken.read_text())["status"] == "ok"
    assert (study.path / "table.md").read_text().count("| ok     |") == 2


def test_a_signal_from_outside_ends_it_with_all_that_there_is(monkeypatch, capsys):
    use_stub(monkeypatch)
    cells = a_list((1, "workload.negative_prompt=ok"), (1, "workload.negative_prompt=hang"))

    def end():
        until = time.monotonic() + 60
        while time.monotonic() < until and not list(Path("s").glob("gpu/cells/*/*/pids")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    monkeypatch.setattr(gpu_matrix_run, "Times", lambda path: (thread.start(), Times(path))[1])
    words = ["--minutes", "5", "--cells", str(cells), "--study", "s/gpu", "--out", "out"]
    assert gpu_matrix.main([*words, "hardware=cpu", "launch.grace=0.1"]) == 143
    thread.join()
    assert sorted(row.status for row in Study.open(Path("s/gpu")).results()) == ["interrupted", "ok"]
    assert Path("out/gpu.tar.gz").exists()
    assert "interrupted" in capsys.readouterr().err


def test_a_plan_that_refuses_takes_no_time(monkeypatch):
    use_stub(monkeypatch)
    todo = points(read_matrix(a_list((1000, "attention=cudnn"))), ["hardware=cpu", "launch.grace=0.1"])
    assert run(todo, Study.create(Path("s/gpu")), budget(5), None) == ["refused"]


# --- the command


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--minutes", "nan"], "--minutes nan: give a number"),
        (["--minutes", "inf"], "--minutes inf"),
        (["--minutes", "-1"], "--minutes -1"),
        (["--minutes", "1", "--commit", "main"], "--commit 'main' is no commit"),
    ],
)
def test_wrong_usage(capsys, words, says):
    assert gpu_matrix.main([*words, "--cells", str(a_list((1,))), "hardware=cpu"]) == 2
    assert capsys.readouterr().err.startswith(f"gpu_matrix: {says}")


@pytest.mark.parametrize("flag", ["--out", "--study"])
def test_a_folder_that_cannot_be_is_told_before_the_first_cell(monkeypatch, capsys, flag):
    use_stub(monkeypatch)
    Path("file").touch()
    folders = {"--study": "s/gpu", "--out": "out", flag: "file"}
    words = ["--minutes", "1", "--cells", str(a_list((1, "workload.negative_prompt=ok"))), "hardware=cpu"]
    assert gpu_matrix.main([*words, *(word for pair in folders.items() for word in pair)]) == 2
    assert not list(Path().glob("s/gpu/cells/*"))
    err = capsys.readouterr().err
    assert err.startswith("gpu_matrix: ")
    assert "file" in err
    assert err.count("\n") == 1


def test_a_full_disk_is_told_in_a_paragraph(monkeypatch, capsys):
    use_stub(monkeypatch)

    def full(study, *args):
        if study.results():
            raise OSError(28, "No space left on device", "s/gpu/table.csv")

    monkeypatch.setattr(gpu_matrix_run, "write_tables", full)
    words = ["--minutes", "1", "--cells", str(a_list((1, "workload.negative_prompt=ok"))), "--study", "s/gpu"]
    assert gpu_matrix.main([*words, "hardware=cpu"]) == 2
    assert capsys.readouterr().err.startswith("gpu_matrix: s/gpu/table.csv: No space left on device. --study")
    assert [row.status for row in Study.open(Path("s/gpu")).results()] == ["ok"]


def test_tables_name_every_command_and_no_places(monkeypatch):
    use_stub(monkeypatch)
    sha = "60bc8b3" + "0" * 33
    for minutes, seed in ((1, 1), (2, 2)):
        cells = a_list((1, "workload.negative_prompt=ok", f"workload.seed={seed}"))
        words = ["--minutes", str(minutes), "--cells", str(cells.absolute()), "--study", "s/gpu", "--commit", sha]
        assert gpu_matrix.main([*words, "hardware=cpu"]) == 0
    table = Path("s/gpu/table.md").read_text()
    told = [f"`scripts/gpu_matrix --minutes {n} --cells cells.json --commit {sha} hardware=cpu`" for n in (1, 2)]
    assert f"; made by {', '.join(told)}\n" in table


@pytest.mark.parametrize(
    ("word", "shown"),
    [("a.b=/home/me/x.st", "a.b=x.st"), ("a=~/x", "a=x"), ("a=~me/y/x", "a=x"), ("a=../x", "a=x"), ("a=b/c", "a=b/c")],
)
def test_a_path_is_shown_by_its_name(word, shown):
    args = gpu_matrix._parser().parse_intermixed_args(["--minutes", "1.5", word])
    assert gpu_matrix._command(args) == f"scripts/gpu_matrix --minutes 1.5 {shown}"


def test_the_scripts_paths_are_relative_to_where_it_is_called(tmp_path):
    a_list((1, "workload.seed=3"))
    words = ["--minutes", "1", "--cells", "cells.json", "--study", "s/gpu", "--dry-run", "hardware=cpu"]
    Path("json.py").write_text("raise ImportError('a stranger')\n")
    cell = stubbed_seed(3)
    Study.create(Path("s/gpu")).keep(a_result(cell, environment=(here := environment("cpu")), env_id=here.id))
    command = [str(REPO / "scripts/gpu_matrix"), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHON": sys.executable}
    )
    assert done.returncode == 0, done.stderr
    assert "has its row: ok" in done.stdout


def stubbed_seed(seed):
    (point,) = points(read_matrix(Path("cells.json")), ["hardware=cpu", f"workload.seed={seed}"])
    return point.cell


def test_without_a_gpu_it_says_so(capsys):
    assert gpu_matrix.main(["--minutes", "1", "--cells", str(a_list((1,)))]) == 1
    assert "no NVIDIA GPU" in capsys.readouterr().err
    assert gpu_matrix.main(["--minutes", "1", "--cells", str(a_list((1,))), "hardware=h100"]) == 1
    assert "hardware=h100 is declared" in capsys.readouterr().err
    assert not Path("docs").exists()


def test_a_dry_run_tells_what_would_run(capsys):
    cells = a_list(*((60, f"workload.seed={i}") for i in range(3)), (1, "attention=cudnn"), (9, "workload.seed=0"))
    words = ["--minutes", "3", "--cells", str(cells), "--dry-run", "hardware=cpu", "--study", "s/gpu"]
    assert gpu_matrix.main(words) == 0
    first = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in first[1:]] == ["runs", "runs", "needs", "refused"]
    assert not Path("s").exists()
    study = Study.create(Path("s/gpu"))
    cell = points(read_matrix(cells), ["hardware=cpu"])[0].cell
    study.keep(a_result(cell))
    assert gpu_matrix.main(words) == 0
    assert "has its row" not in capsys.readouterr().out  # it is from another processor
    here = environment("cpu")
    study.keep(a_result(cell, environment=here, env_id=here.id))
    assert gpu_matrix.main(words) == 0
    assert "has its row: ok" in capsys.readouterr().out


def test_a_dry_run_without_that_gpu_takes_every_row(capsys):
    words = ["--minutes", "3", "--cells", str(a_list((1,))), "--dry-run", "hardware=h100", "--study", "s/gpu"]
    (point,) = points(read_matrix(Path("cells.json")), ["hardware=h100"])
    Study.create(Path("s/gpu")).keep(a_result(point.cell))
    assert gpu_matrix.main(words) == 0
    out = capsys.readouterr().out
    assert "has its row: ok" in out
    assert "no such GPU here" in out


def test_rows_of_another_environment_do_not_count(monkeypatch):
    use_stub(monkeypatch)
    todo, study = stubbed_points("ok"), Study.create(Path("s/gpu"))
    study.keep(a_result(todo[0].cell, env_id="0" * 12))
    assert run(todo, study, budget(60), None) == ["ok"]


def test_on_a_gpu_the_study_lies_with_the_results_under_its_name(monkeypatch):
    def ask(name):
        """The rest of NVML: constants, and questions that this driver does not answer."""
        if not name.startswith("nvml"):
            return 0
        return 1 if name.startswith("nvmlClocksEventReason") else lambda *args: unanswered()

    def unanswered():
        raise module.NVMLError

    module = fake_pynvml(["NVIDIA H100 80GB HBM3"])
    module.nvmlDeviceGetHandleByUUID = lambda uuid: 0
    module.nvmlDeviceGetCudaComputeCapability = lambda handle: (9, 0)
    module.__getattr__ = ask
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    use_stub(monkeypatch)
    cells = a_list((1, "workload.negative_prompt=ok", "launch.grace=0.1"))
    assert gpu_matrix.main(["--minutes", "2", "--cells", str(cells)]) == 0
    (row,) = Study.open(Path("docs/results/nvidia-h100")).results()
    assert (row.status, row.environment.device.name) == ("ok", "NVIDIA H100 80GB HBM3")
    assert "driver 580.10" in Path("docs/results/nvidia-h100/table.md").read_text()


@pytest.mark.slow
def test_the_script_for_real_on_the_cpu(tmp_path):
    """Two tiny models: one cell in the first call, the other in the next one, and then nothing is left."""
    cells = tmp_path / "cells.yaml"
    cells.write_text(
        "common: [model.weights=tiny, workload.steps=2, measure=quick]\n"
        "cells:\n  - {seconds: 20, words: [model=sd15]}\n  - {seconds: 500, words: [model=sdxl]}\n"
    )
    words = ["--cells", str(cells), "--study", str(tmp_path / "docs/cpu"), "--out", str(tmp_path / "out")]

    def call(minutes):
        command = [str(REPO / "scripts/gpu_matrix"), "--minutes", str(minutes), *words, "hardware=cpu"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = call(4)
    assert "ok after" in first
    assert "left for other calls" in first
    assert "ok after" in call(120)
    assert "2 cells, 2 have their row" in call(1)
    rows = Study.open(tmp_path / "docs/cpu").results()
    assert {row.cell["recipe"]["model"]["name"] for row in rows} == {"sd15", "sdxl"}
    assert {row.status for row in rows} == {"ok"}
    assert (tmp_path / "out/cpu.tar.gz").stat().st_size < 100_000
