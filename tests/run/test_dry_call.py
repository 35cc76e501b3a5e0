"""Plans with a call without weights in them, by a stand-in: when one is made, what is kept, what becomes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import use_stub
from support.rows import a_cell

from diffopt import api
from diffopt.config.resolve import compose_requests
from diffopt.errors import Refusal
from diffopt.models.resolve import packaged_architecture
from diffopt.recipe.cell import Cell
from diffopt.recipe.dry_call import DryAnswer
from diffopt.run import dry_call
from diffopt.run.dry_call import plan_cells

Cli = Callable[..., tuple[int, str, str]]
STUB = Path(__file__).parents[1] / "support" / "stub_dry_call.py"
OK = "called once without weights: ok"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[int]]:
    """How many calls each process was given that has been started."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(dry_call, "WORKER", (str(STUB),))
    return lambda: (
        [int(line) for line in (cache / "started").read_text().split()] if (cache / "started").exists() else []
    )


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return Path(shutil.copytree(packaged_architecture("sd15", tiny=True), tmp_path / "mine"))


def words(folder: Path, *more: str) -> list[str]:
    return ["model=local", f"model.path={folder}", "model.weights=random", "hardware=cpu", "measure=quick", *more]


def local(folder: Path, *more: str) -> Cell:
    return compose_requests(words(folder, *more))[0].cell


def said(mode: str) -> str:
    return f"workload.negative_prompt={mode}"


def test_a_call_is_made_once_and_remembered(started: Callable[[], list[int]], mine: Path) -> None:
    for _ in range(2):
        (plan,) = plan_cells([local(mine)], deep=True)
        assert (plan.status, plan.called, OK in str(plan)) == ("ok", True, True)
    assert started() == [1]
    (plan,) = plan_cells([local(mine)], deep=False)
    assert (plan.called, OK in str(plan)) == (False, False)


def test_nothing_stays_of_its_temporary_files(started: Callable[[], list[int]], mine: Path, tmp_path: Path) -> None:
    plan_cells([local(mine, said("dies"))], deep=True)
    left = Path((tmp_path / "cache" / "temporary").read_text())
    assert left.parent.name.startswith("diffopt-dry-")
    assert not left.parent.exists()


def test_what_decides_nothing_asks_no_second_time(started: Callable[[], list[int]], mine: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(mine, tmp_path / "moved"))
    cells = [local(mine), local(mine, "workload.seed=3", "fuse=qkv", "model.name=other"), local(moved)]
    assert all(plan.called for plan in plan_cells(cells, deep=True))
    assert started() == [1]


def test_what_decides_the_call_asks_anew(
    started: Callable[[], list[int]], mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ("workload.batch_size=2", "workload.steps=7", "scheduler=euler", "workload.prompt=x", said("blue"))
    plan_cells([local(mine), *(local(mine, word) for word in other)], deep=True)
    assert started() == [6]
    config = mine / "unet" / "config.json"
    config.write_text(config.read_text().replace("{", "{\n", 1))
    plan_cells([local(mine)], deep=True)
    monkeypatch.setattr(dry_call, "installed_version", lambda name, there: "99")
    plan_cells([local(mine)], deep=True)
    assert started() == [6, 1, 1]


@pytest.mark.parametrize("spoiled", ["", "{", '{"outcome": "great"}', "[]"])
def test_a_spoiled_memory_is_replaced(
    started: Callable[[], list[int]], mine: Path, tmp_path: Path, spoiled: str
) -> None:
    plan_cells([local(mine)], deep=True)
    (memory,) = (tmp_path / "cache" / "diffopt" / "dry_calls").iterdir()
    whole = memory.read_text()
    memory.write_text(spoiled)
    assert plan_cells([local(mine)], deep=True)[0].called
    assert started() == [1, 1]
    assert memory.read_text() == whole


def test_a_memory_that_takes_no_files_costs_time_alone(
    started: Callable[[], list[int]], mine: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache" / "diffopt").write_text("a file")
    assert [plan_cells([local(mine)], deep=True)[0].called for _ in range(2)] == [True, True]
    assert started() == [1, 1]


def test_a_memory_that_others_may_write_to_is_not_believed(
    started: Callable[[], list[int]], mine: Path, tmp_path: Path
) -> None:
    plan_cells([local(mine)], deep=True)
    (tmp_path / "cache" / "diffopt").chmod(0o777)
    with pytest.raises(Refusal, match="can be written to by others"):
        plan_cells([local(mine)], deep=True)


def test_a_process_that_dies_is_noted_and_not_remembered(started: Callable[[], list[int]], mine: Path) -> None:
    cells = [local(mine, said("ok")), local(mine, said("dies")), local(mine, said("fails"))]
    first, dead, failed = plan_cells(cells, deep=True)
    assert (first.called, dead.status, failed.status) == (True, "ok", "refused")
    (note,) = [note for note in dead.notes if "without weights" in note]
    assert "exited with code 3; it printed at last: the last words" in note
    assert failed.reasons[0].startswith("model=local: no luck; try; `diffopt run --no-deep`")
    assert started() == [3, 1]
    plan_cells(cells, deep=True)
    assert started() == [3, 1, 1]


def test_a_note_is_the_cells_and_its_id_stays(started: Callable[[], list[int]], mine: Path) -> None:
    cell = local(mine, said("unclear"))
    (plan,) = plan_cells([cell], deep=True)
    assert (plan.status, plan.called, plan.cell.id) == ("ok", False, cell.id)
    assert plan.cell.notes[-1] == plan.notes[-1]
    assert "no luck" in plan.notes[-1]


def test_shipped_models_and_refused_cells_start_nothing(started: Callable[[], list[int]], mine: Path) -> None:
    for cell in (a_cell(), a_cell("model=sdxl", "model.weights=tiny"), local(mine, "quant=fp8_dynamic")):
        assert not plan_cells([cell], deep=True)[0].called
    assert started() == []


def test_a_model_of_the_hub_that_is_not_in_the_cache_is_a_note(started: Callable[[], list[int]], mine: Path) -> None:
    asked = local(mine)
    model = asked.recipe.model.model_copy(update={"path": None, "id": "some/where", "weights": "pretrained"})
    cell = asked.model_copy(update={"recipe": asked.recipe.model_copy(update={"model": model})})
    (plan,) = plan_cells([cell], deep=True)
    assert plan.status == "ok"
    assert "`diffopt prefetch` fetches them" in plan.notes[-1]
    assert started() == []


def test_the_verb_plan(started: Callable[[], list[int]], mine: Path, cli: Cli) -> None:
    code, out, _ = cli("plan", *words(mine))
    assert (code, "without weights" in out, started()) == (0, False, [])
    code, out, _ = cli("plan", "--deep", *words(mine))
    assert (code, OK in out.splitlines()) == (0, True)
    code, out, _ = cli("plan", "--deep", "-m", *words(mine, said("ok,fails,unclear")))
    assert (code, out.splitlines()[-1]) == (0, "3 cells: 2 ok, 1 refused; 1 called once without weights: ok")
    assert started() == [1, 3]
    assert '"called": true' in cli("plan", "--deep", "--json", *words(mine))[1]


def test_run_calls_first_and_a_failure_leaves_no_study(
    started: Callable[[], list[int]], mine: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_stub(monkeypatch)
    before = sorted(tmp_path.iterdir())
    for more in ((), ("study=s",)):
        code, out, err = cli("run", *words(mine, said("fails"), *more))
        assert code == 1
        assert "no luck" in out
        assert "refused at plan" in err
        assert sorted(tmp_path.iterdir()) == before
    assert started() == [1]
    code, _, err = cli("run", "--no-deep", *words(mine, said("fails"), "study=s"))
    assert "refused" not in err
    assert started() == [1]
    code, out, _ = cli("run", *words(mine, said("ok"), "study=s"))
    assert (code, started()) == (0, [1, 1])


def test_a_sweep_makes_all_calls_in_one_process(
    started: Callable[[], list[int]], mine: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stub(monkeypatch)
    code, out, err = cli("run", "-m", *words(mine, said("ok,fails"), "study=s"))
    assert (code, started()) == (0, [2])
    assert "no luck" in out + err


def test_from_python(started: Callable[[], list[int]], mine: Path) -> None:
    assert not api.plan(local(mine)).called
    assert api.plan(local(mine), deep=True).called


@pytest.mark.slow
def test_the_real_process(mine: Path, tmp_path: Path, diffopt: Callable[..., object], monkeypatch: object) -> None:
    """What `diffopt run` refuses before it loads anything, and what it does with --no-deep."""
    config = mine / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 32', '"cross_attention_dim": 48'))
    assert '"cross_attention_dim": 48' in config.read_text()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = diffopt("run", *words(mine, "study=s"), env=environment)
    assert done.returncode == 1, done.stderr
    assert "cross_attention_dim=48" in done.stdout
    assert not (tmp_path / "studies").exists()
    done = diffopt("run", "--no-deep", *words(mine, "study=s"), env=environment)
    assert done.returncode == 1
    assert "error" in done.stdout
    assert (tmp_path / "studies").exists()
    config.write_text(config.read_text().replace('"cross_attention_dim": 48', '"cross_attention_dim": 32'))
    assert OK in diffopt("plan", "--deep", *words(mine), env=environment).stdout.splitlines()


def test_an_answer_is_data() -> None:
    told = DryAnswer(outcome="fails", says="a", keys=("scheduler",), remedy="b")
    assert DryAnswer.from_plain(told.model_dump(mode="json")) == told
