"""Each mistake of a user's ends with one clear paragraph and exit code 2, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]

MISTAKES = {
    "unknown option": (["quant=int8_dynamc"], ["Did you mean int8_dynamic?", "quant"]),
    "unknown group": (["quantt=int8_dynamic"], ["no key 'quantt'", "Did you mean quant?"]),
    "unknown key": (["compile=default", "compile.fulgraph=true"], ["no key 'fulgraph'", "Did you mean fullgraph?"]),
    "unknown value below a value": (["workload.seed.x=1"], ["workload.seed"]),
    "wrong type": (["workload.steps=many"], ["workload.steps=many", "integer"]),
    "true is not 1": (["workload.steps=true"], ["workload.steps=true", "integer"]),
    "float for int": (["workload.batch_size=1.5"], ["workload.batch_size=1.5"]),
    "wrong literal": (["compile=default", "compile.mode=fast"], ["compile.mode=fast", "reduce-overhead"]),
    "numeric option": (["hardware=4090"], ["hardware=4090", "Did you mean rtx4090?"]),
    "null option": (["quant=null"], ["Write none"]),
    "batch size 0": (["workload.batch_size=0"], ["workload.batch_size=0", "greater than or equal to 1"]),
    "indivisible size": (["workload.height=70"], ["workload.height=70", "64 or 72"]),
    "prompt with a comma": (["workload.prompt=a cat, a dog"], ["workload.prompts_file", "'workload.prompt=\""]),
    "prompt with a parenthesis": (["workload.prompt=a cat (in oil"], ["workload.prompts_file"]),
    "no override": (["compile"], ["not an override", "KEY=VALUE"]),
    "added key": (["+compile.new=1"], ["neither added nor removed"]),
    "deleted group": (["~compile"], ["cannot be deleted"]),
    "hydra setting": (["hydra.run.dir=x"], ["Hydra itself is not configured"]),
    "package": (["compile@hydra.callbacks=none"], ["Hydra itself is not configured"]),
    "sweep without -m": (["compile=none,default"], ["add -m"]),
    "matrix without -m": (["sweep=demo"], ["add -m"]),
    "study with odd signs": (["study=[1]"], ["study"]),
    "local without a path": (["model=local"], ["model.path"]),
    "local folder missing": (["model=local", "model.path=nowhere"], ["nowhere"]),
    "prompts file missing": (["workload.prompts_file=nowhere.txt"], ["no such file"]),
    "no recipe file": (["--recipe", "nowhere.yaml"], ["no such file"]),
    "no config dir": (["--config-dir", "nowhere"], ["no such folder"]),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_mistake_is_one_paragraph_and_exit_code_2(cli: Cli, tmp_path: Path, verb: str, name: str) -> None:
    words, said = MISTAKES[name]
    code, out, err = cli(verb, *words)
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, "one paragraph"
    assert "Traceback" not in err
    for part in said:
        assert part in err
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_unknown_verb(cli: Cli) -> None:
    code, _, err = cli("rnu")
    assert code == 2
    assert "Did you mean run?" in err


def test_an_empty_glob_is_a_mistake(cli: Cli) -> None:
    code, _, err = cli("plan", "-m", "quant=glob(zzz*)")
    assert code == 2
    assert "matches no option" in err


@pytest.mark.parametrize(
    "prompt", ["a cat, a dog", "a cat (in oil)", "100% cat: [one], {two}", "say ${HOME}", "ein Kätzchen"]
)
def test_any_prompt_can_be_given_quoted_or_in_a_file(cli: Cli, tmp_path: Path, prompt: str) -> None:
    import yaml

    code, out, err = cli("show", f'workload.prompt="{prompt}"')
    assert code == 0, err
    assert yaml.safe_load(out)["workload"]["prompts"] == [prompt]
    (tmp_path / "prompts.txt").write_text(f"{prompt}\n\nanother\n")
    code, out, err = cli("show", "workload.prompts_file=prompts.txt")
    assert code == 0, err
    assert yaml.safe_load(out)["workload"]["prompts"] == [prompt, "another"]
