"""Each mistake of a user's ends with one clear paragraph and exit code 2, and nothing is written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from diffopt.config.resolve import compose_requests
from diffopt.errors import UsageError
from diffopt.recipe.lock import recipe_to_yaml

Cli = Callable[..., tuple[int, str, str]]
Run = Callable[..., CompletedProcess[str]]

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
    "prompt like a number": (["workload.prompt=1e3"], ["Hydra reads a number", "'workload.prompt=\"1e3\"'"]),
    "prompt like a list": (["workload.prompt=[a,b]"], ["reads a list", "'workload.prompt=\"[a,b]\"'", "prompts_file"]),
    "negative prompt like a truth value": (
        ["workload.negative_prompt=true"],
        ["a truth value", 'negative_prompt="true'],
    ),
    "prompts like numbers": (["workload.prompt=a,3"], ["Hydra reads a number", "'workload.prompt=\""]),
    "prompts as in a recipe file": (
        ["workload.prompts=[a,b]"],
        ["workload.prompts=[a,b]", "Did you mean prompt?", "workload.prompts_file=FILE"],
    ),
    "several files of prompts": (["workload.prompts_file=[a,b]"], ["workload.prompts_file=[a,b]", "one text file"]),
    "no negative prompt": (["workload.negative_prompt=null"], ["workload.negative_prompt=null: must be a text."]),
    "a model's own height": (["model.height=tall"], ["model.height=tall"]),
    "torch's name of a dtype": (["precision=float16"], ["Write precision=fp16."]),
    "any GPU": (["hardware=gpu"], ["Write hardware=auto"]),
    "a key without its group": (["steps=4"], ["Did you mean workload.steps?"]),
    "a key in another group": (["model.batch_size=4"], ["Did you mean workload.batch_size?"]),
    "diffusers' argument": (["num_inference_steps=4"], ["Did you mean workload.steps?"]),
    "nothing after the last comma": (["compile=none,regional,"], ["empty value beside a comma"]),
    "nothing after a prompt's comma": (
        ["workload.negative_prompt=bad,"],
        ["empty value beside a comma", "'workload.negative_prompt=\""],
    ),
    "nothing between two commas": (["workload.steps=1,,2"], ["empty value beside a comma"]),
    "prompt with a comma": (["workload.prompt=a cat, a dog"], ["workload.prompts_file", "'workload.prompt=\""]),
    "prompt with a parenthesis": (["workload.prompt=a cat (in oil"], ["workload.prompts_file"]),
    "no override": (["compile"], ["not an override", "KEY=VALUE"]),
    "added key": (["+compile.new=1"], ["neither added nor removed"]),
    "deleted group": (["~compile"], ["cannot be deleted"]),
    "hydra setting": (["hydra.run.dir=x"], ["Hydra itself is not configured"]),
    "package": (["compile@hydra.callbacks=none"], ["Hydra itself is not configured"]),
    "option of an earlier diffopt": (["model=tiny_sdxl"], ["it is model=sdxl model.weights=tiny now"]),
    "sweep without -m": (["compile=none,default"], ["run, plan and prefetch take with -m"]),
    "matrix without -m": (["sweep=demo"], ["run, plan and prefetch take", "with -m"]),
    "study with odd signs": (["study=[1]"], ["study"]),
    "local without a path": (["model=local"], ["model.path"]),
    "local folder missing": (["model=local", "model.path=nowhere"], ["nowhere"]),
    "prompts file missing": (["workload.prompts_file=nowhere.txt"], ["no such file"]),
    "infinity": (["workload.guidance=inf"], ["workload.guidance", "finite"]),
    "infinite deadline": (["launch.grace=inf"], ["launch.grace", "finite"]),
    "deadline of nothing": (["launch.deadlines.load=0"], ["launch.deadlines.load=0"]),
    "thousands of digits": (["workload.seed=" + "9" * 5000], ["workload.seed"]),
    "null where a number belongs": (["workload.batch_size=null"], ["workload.batch_size=null"]),
    "items of a list": (["compile=default", "compile.components=[foo]"], ["compile.components.0=foo"]),
    "a value that is no list": (
        ["quant=int8_weight", "quant.components=denoiser"],
        ["quant.components=denoiser: must be a list, such as [denoiser]"],
    ),
    "a word in every path": (["quant=int8_weight", "quant.skip=[.]"], ["quant.skip=[.]: '.' is in nearly every path"]),
    "a value of hardware=auto": (["hardware.device=cuda"], ["Choose hardware=NAME"]),
    "prompt and prompts file": (["workload.prompt=a", "workload.prompts_file=b"], ["leave one out"]),
    "upper case": (["hardware=RTX4090"], ["Did you mean rtx4090?"]),
    "a file name that is too long": (["workload.prompts_file=" + "x" * 300], ["cannot be a path"]),
    "an unknown home": (['workload.prompts_file="~nosuch/x"'], ["cannot be a path"]),
    "unknown key in a mapping": (["compile=default", "compile.options={nope: true}"], ["no key 'nope'"]),
    "an artifact for a cold start": (
        ["measure=starts", f"launch.compile_artifact.load={__file__}", f"launch.compile_artifact.sha256={'0' * 64}"],
        ["measure.starts=true", "launch.compile_artifact.load"],
    ),
    "a key of another option": (["vae.tile=256"], ["vae=default is chosen", "'tile'", "vae=slicing or tiling"]),
    "a key of no option": (["compile=default", "compile.nope=1"], ["'compile' has no key 'nope'. It has kind"]),
    "a part named twice": (
        ["compile=default", "compile.components=[denoiser, denoiser]"],
        ["compile.components=[denoiser,denoiser]", "names denoiser twice; once is enough"],
    ),
    "a backend of the hub without its kernel": (
        ["attention=flash2_hub", "attention.hub=null"],
        ["attention.backend=flash_hub", "attention.hub says"],
    ),
    "no such backend": (["attention=sdpa", "attention.backend=warp"], ["attention.backend=warp", "'native'"]),
    "the backend of another option": (
        ["attention=math", "attention.backend=_native_flash"],
        ["attention.backend=_native_flash", "Choose attention=flash"],
    ),
    "tuning what generates no code": (
        ["compile=default", "compile.backend=eager", "compile.mode=max-autotune"],
        ["compile.backend=eager", "compile.mode=default", "compile.options"],
    ),
    "streams of several blocks": (
        ["memory=group_offload", "memory.use_stream=true", "memory.num_blocks_per_group=2"],
        ["memory.use_stream=true", "memory.num_blocks_per_group=1"],
    ),
    "no recipe file": (["--recipe", "nowhere.yaml"], ["no such file"]),
    "no config dir": (["--config-dir", "nowhere"], ["no such folder"]),
    "no config dir to trust": (["--trust-config-dir", "nowhere"], ["--trust-config-dir nowhere", "no such folder"]),
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


SWEEPS = {
    "empty glob": (["quant=glob(zzz*)"], "no value at all"),
    "empty range": (["workload.steps=range(4,1)"], "no value at all"),
    "range without a step": (["workload.steps=range(1,4,0)"], "cannot be swept"),
    "interval": (["workload.steps=interval(1,3)"], "cannot be swept"),
    "two studies": (["study=a,b"], "one value"),
    "two deadlines": (["launch.grace=1,2"], "one value"),
    "study on an axis": (["sweep=studies"], "one value"),
    "axis and zip": (["sweep=both"], "one of the two must go"),
    "empty axis": (["sweep=empty"], "axes.compile"),
    "unknown matrix": (["sweep=nope"], "no option 'nope'"),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_bad_sweep_is_a_mistake(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "studies.yaml").write_text("axes: {study: [a, b]}")
    (tmp_path / "conf" / "sweep" / "both.yaml").write_text("axes: {compile: [none]}\nzip: [{compile: regional}]")
    (tmp_path / "conf" / "sweep" / "empty.yaml").write_text("axes: {compile: []}")
    words, said = SWEEPS[name]
    code, out, err = cli("plan", "-m", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_texts_of_a_matrix_stay_texts(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    words = ["true", "none", "null", "1", "a, b (c)", "ä"]
    text = f"axes: {{workload.prompt: {words!r}}}"
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(text, encoding="utf-8")
    code, out, err = cli("plan", "-m", "sweep=mine")
    assert code == 0, err
    for word in words:
        assert f"workload.prompts=[{word}]" in out


def test_what_is_typed_beats_the_overlays_prompts(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "mine.yaml").write_text("workload: {prompts_file: p.txt}")
    (tmp_path / "p.txt").write_text("\ufefffrom the file\r\n\r\nsecond\n", encoding="utf-8")
    assert "- from the file\n  - second\n" in cli("show", "recipe=mine")[1]
    assert "- typed\n" in cli("show", "recipe=mine", "workload.prompt=typed")[1]
    (tmp_path / "q.txt").write_text("other")
    assert "- other\n" in cli("show", "recipe=mine", "workload.prompts_file=q.txt")[1]
    (tmp_path / "p.txt").write_text("odd \x00 sign")
    assert cli("show", "recipe=mine")[0] == 2


def test_one_broken_option_does_not_hide_the_others(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "attention"
    folder.mkdir(parents=True)
    (folder / "empty.yaml").write_text("# nothing in it\n")
    (folder / "latin.yaml").write_bytes(b"# caf\xe9\nkind: none\n")
    (folder / "math.yaml").write_text("# shadows\nkind: none\n")
    (folder / "123.yaml").write_text("# a number for a name\nkind: none\n")
    code, out, err = cli("ls", "attention")
    assert code == 0, err
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "broken: " in lines["empty"]
    assert str(Path("conf") / "attention" / "empty.yaml") in lines["empty"]
    assert "broken: " in lines["latin"]
    assert "has the name of another option" in lines["math"]
    assert lines["123"].endswith("yes")
    assert lines["sdpa"].endswith("yes")
    assert cli("plan", 'attention="123"')[0] == 0


def test_interrupting_any_verb_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffopt.cli import arguments

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(arguments, "compose_requests", interrupted)
    assert cli("plan") == (130, "", "diffopt: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        words = [sys.executable, "-m", "diffopt", "ls"]
        done = subprocess.run(words, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "diffopt: the output cannot be written: No space left on device\n"


def test_a_terminal_without_unicode(diffopt: Run) -> None:
    done = diffopt("--help", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr


def test_a_vanished_working_directory(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = cli("plan")
    assert code == 2
    assert "working directory" in err


def test_config_dir_reaches_hydras_flags_too(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "more" / "compile").mkdir(parents=True)
    (tmp_path / "more" / "compile" / "mine.yaml").write_text("# mine\ndefaults: [regional, _self_]\n")
    code, out, err = cli("show", "--cfg", "job", "--config-dir", "more", "compile=mine")
    assert code == 0, err
    assert "kind: regional" in out
    assert cli("show", "--cfg", "job", "+hydra.callbacks.x=1")[0] == 2


SPACED = [
    "赤い星\u3000白い背景",
    "une étoile\u00a0!",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "می\u200cخواهم",
    "soft\u00adly",
]


@pytest.mark.parametrize(
    "prompt", ["a cat, a dog", "a cat (in oil)", "100% cat: [one], {two}", "say ${HOME}", "ein Kätzchen", *SPACED]
)
def test_any_prompt_can_be_given_quoted_or_in_a_file(cli: Cli, tmp_path: Path, prompt: str) -> None:
    import yaml

    code, out, err = cli("show", f'workload.prompt="{prompt}"')
    assert code == 0, err
    assert yaml.safe_load(out)["workload"]["prompts"] == [prompt]
    (tmp_path / "prompts.txt").write_text(f"{prompt}\n\nanother\n", encoding="utf-8")
    code, out, err = cli("show", "workload.prompts_file=prompts.txt")
    assert code == 0, err
    assert yaml.safe_load(out)["workload"]["prompts"] == [prompt, "another"]


WRITTEN = {
    "prompt: [a, b]": "workload.prompt=[a,b]: must be a text.",
    "prompt: 1.0e3": "workload.prompt=1000.0: must be a text; put it in quotes.",
    "prompt: true": "workload.prompt=true: must be a text; put it in quotes.",
    "negative_prompt: [a]": "workload.negative_prompt=[a]: must be a text.",
    "prompts_file: [a, b]": "workload.prompts_file=[a,b]: give the path of one text file.",
    "prompts: []": "workload.prompts=[]: must not be empty.",
    "steps: many": "workload.steps=many: input should be a valid integer.",
}


@pytest.mark.parametrize("line", WRITTEN)
def test_an_error_names_the_key_that_an_option_s_file_has(tmp_path: Path, line: str) -> None:
    (tmp_path / "workload").mkdir()
    (tmp_path / "workload" / "mine.yaml").write_text(f"# mine\ndefaults: [auto, _self_]\n{line}\n")
    with pytest.raises(UsageError) as caught:
        compose_requests(["model=deepfloyd_if", "workload=mine"], folders=[tmp_path])
    assert str(caught.value).startswith(WRITTEN[line])
    assert str(caught.value).count("=") == 1, "nothing that was made of it is named"


def test_an_error_names_the_model_s_key_where_its_value_is_taken() -> None:
    for key in ("height", "width", "steps", "guidance"):
        with pytest.raises(UsageError) as caught:
            compose_requests(["hardware=cpu", f"model.{key}=x"])
        assert "workload." not in str(caught.value)
        assert f"model.{key}=x: input should be a valid" in str(caught.value)


def test_an_error_of_a_recipe_file_names_the_key_that_it_has(tmp_path: Path) -> None:
    (request,) = compose_requests(["hardware=cpu"])
    data = yaml.safe_load(recipe_to_yaml(request.cell))
    data["workload"]["prompts"] = ["a", 3]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UsageError, match=r"workload.prompts.1=3: must be a text; put it in quotes\."):
        compose_requests([], lock=tmp_path / "mine.yaml")
    data["workload"]["prompt"] = ["a", "b"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UsageError, match="'workload.prompt' is not a key there. .* the list workload.prompts"):
        compose_requests([], lock=tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("key", "sign", "says"),
    [
        ("workload.prompt", "\udce9", "a byte that is not UTF-8 (0xe9); give it in UTF-8"),
        ("workload.negative_prompt", "\udce9", "a byte that is not UTF-8 (0xe9)"),
        ("workload.prompt", "\x1b", "a control character (U+001B); leave it out"),
        ("workload.prompts_file", "\x1b", "a control character (U+001B)"),
    ],
)
def test_what_is_no_text_is_told_by_its_key(cli: Cli, tmp_path: Path, key: str, sign: str, says: str) -> None:
    (tmp_path / "prompts.txt").write_text(f"caf{sign}\n" if key.endswith("file") else "")
    code, _, err = cli("show", f"{key}=prompts.txt" if key.endswith("file") else f'{key}="caf{sign}"')
    assert code == 2
    assert key in err
    assert says in err
