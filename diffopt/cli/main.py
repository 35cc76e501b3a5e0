"""The command line: one verb, then Hydra's overrides. Parses, calls, prints; decides nothing.

Exit codes: 0 every row of a sweep is ok or refused; 1 some cell failed, a single run was refused or is not valid,
launch.minutes were over before each cell had its row, or a comparison is worse than --slower allows; 2 wrong usage;
129, 130 and 143 after SIGHUP, Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from diffopt.cli.streams import say, standard_streams
from diffopt.errors import DiffoptError, Interrupted, UsageError
from diffopt.machine.garbage import no_garbage_collection
from diffopt.schema.words import did_you_mean
from diffopt.version import __version__

HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")


@dataclass(frozen=True)
class Verb:
    """One verb: what it does in a line, its flags, and the command behind it."""

    says: str
    call: str  # the function behind it, as MODULE:FUNCTION of this package
    flags: tuple[str, ...] = ()
    words: str = "overrides"  # what its positional arguments are
    example: str = ""
    keeps: bool = False  # it makes files: whatever becomes of its output, its exit code tells of them


FLAGS: dict[str, dict[str, object]] = {
    "--multirun": {"short": "-m", "action": "store_true", "help": "run every combination of a,b values; sweep=NAME"},
    "--force": {"action": "store_true", "help": "measure anew what the study has a row of; the row is replaced"},
    "--deep": {
        "action": "store_true",
        "help": "call the pipeline of model=local or model=hub once without weights, in a process of its own",
    },
    "--no-deep": {"dest": "deep", "action": "store_false", "help": "do not call it once without weights beforehand"},
    "--recipe": {"metavar": "FILE", "type": Path, "help": "start from a file that `diffopt show` printed"},
    "--recipes": {
        "flag": "--recipe",
        "metavar": "FILE",
        "nargs": "+",
        "action": "append",
        "help": "files that `diffopt show` printed",
    },
    "--all": {"action": "store_true", "help": "every recipe on every model that its plan allows"},
    "--compile": {
        "action": "store_true",
        "help": "generate code where a step compiles; without, its graphs are captured and run as they are, in seconds",
    },
    "--config-dir": {"metavar": "DIR", "type": Path, "help": "options and recipes beside the shipped ones and ./conf"},
    "--trust-config-dir": {
        "metavar": "DIR",
        "type": Path,
        "help": "likewise, a folder of your own: its options may name interpreters, code and files anywhere",
    },
    "--json": {"action": "store_true", "help": "print JSON"},
    "--pictures": {"metavar": "FILE", "type": Path, "help": "write a contact sheet of the pictures instead (PNG)"},
    "--reference": {
        "metavar": "ROW",
        "help": "what speed-ups are over: recipe:NAME, cell:ID, first, plain (not optimized), auto (plain, else first)",
    },
    "--csv": {"action": "store_true", "help": "print CSV with every column"},
    "--like": {
        "metavar": "PAGE",
        "help": "print the study as that page does: pytorch2 with its figures beside, accelerate_inference, flux",
    },
    "--published": {"metavar": "PAGE", "help": "print the figures of that page instead of a study: pytorch2"},
    "--charts": {
        "metavar": "DIR",
        "type": Path,
        "help": "draw the charts of --like or --published into DIR (PNG) instead of printing them as text",
    },
    "--slower": {
        "metavar": "PERCENT",
        "type": float,
        "help": "exit code 1 if a cell of B is slower than A's by more than that beyond noise, or is no longer ok",
    },
    "--gpu": {
        "metavar": "NAME",
        "help": "whose pipelines the second chart shows; with --like, whose published figures stand beside every row",
    },
}

METAVARS = {
    "overrides": "GROUP=OPTION|KEY=VALUE",
    "group": "GROUP",
    "recipes": "RECIPE",
    "study": "STUDY",
    "sides": "STUDY|KEY=VALUE",
}

VERBS: dict[str, Verb] = {
    "run": Verb(
        "compose, build, prove and measure; -m sweeps",
        "sweeps:run_sweep_verb",
        ("--multirun", "--force", "--no-deep", "--recipe", "--config-dir", "--trust-config-dir"),
        example="diffopt run -m compile=none,regional attention=vanilla,sdpa measure=quick study=first",
        keeps=True,
    ),
    "plan": Verb(
        "the cells, their steps in order, what is refused and why; needs no GPU",
        "plans:run_plan_verb",
        ("--multirun", "--deep", "--recipe", "--config-dir", "--trust-config-dir", "--json"),
        example="diffopt plan -m model=sd15,sdxl hardware=a100,t4 precision=fp16,bf16 compile=none,max_autotune",
    ),
    "check": Verb(
        "a smoke test of recipes for CI: each step on tiny weights, here, with its effect; exit 1 where one has none",
        "smoke:run_check_verb",
        ("--recipes", "--all", "--compile", "--config-dir", "--trust-config-dir"),
        example="diffopt check recipe=pytorch2 model=sdxl; diffopt check --recipe recipes/*.yaml; diffopt check --all",
    ),
    "prefetch": Verb(
        "download what the cells' models need, for machines without a network",
        "downloads:run_prefetch_verb",
        ("--multirun", "--recipe", "--config-dir", "--trust-config-dir"),
        example="diffopt prefetch -m model=sd15,sdxl hardware=cpu",
        keeps=True,
    ),
    "ls": Verb(
        "groups and options, one line each: what it does, needs, and whether it works here",
        "options:run_ls_verb",
        ("--config-dir", "--trust-config-dir"),
        words="group",
        example="diffopt ls attention",
    ),
    "show": Verb(
        "the resolved recipe as YAML, to commit and to read back with --recipe",
        "recipes:run_show_verb",
        ("--recipe", "--config-dir", "--trust-config-dir"),
        example="diffopt show recipe=pytorch2 model=sd15 > pytorch2.yaml",
    ),
    "diff": Verb(
        "what two recipes change: names or files, then overrides for both",
        "recipes:run_diff_verb",
        ("--config-dir", "--trust-config-dir"),
        words="recipes",
        example="diffopt diff baseline pytorch2",
    ),
    "report": Verb(
        "a study as a table, also beside published figures",
        "reports:run_report_verb",
        ("--reference", "--csv", "--pictures", "--like", "--published", "--charts", "--gpu"),
        words="study",
        example="diffopt report first --csv > first.csv; diffopt report --published pytorch2 --charts .",
    ),
    "compare": Verb(
        "two studies, or two sides of one: each cell of A beside its counterpart in B; a gate for CI",
        "reports:run_compare_verb",
        ("--slower", "--json"),
        words="sides",
        example="diffopt compare before after --slower 5; diffopt compare first compile=none compile=regional",
    ),
    "doctor": Verb(
        "a first look at a machine: do compile, CUDA graphs, attention kernels, int8 and fp8 work here",
        "machines:run_doctor_verb",
        ("--json",),
        words="",
    ),
    "env": Verb(
        "versions, GPUs, which options can work here",
        "machines:run_env_verb",
        ("--json", "--config-dir", "--trust-config-dir"),
        words="",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code.

    A reader that goes away (``| head``) changes nothing, not even the exit code: under ``pipefail`` it is no failure,
    and a gate that fails has failed unread. Output that a device does not take is an error of verbs that make no more.
    """
    if argv is None:  # the process is ours: no plugin has a hand in records, and none is looked for in every package
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    arguments = list(sys.argv[1:] if argv is None else argv)
    with standard_streams() as loss:
        code = _answer(arguments)
        if (reason := loss()) is not None:
            failed = _say(f"the output cannot be written: {reason.strerror}", 1)
            keeps = bool(arguments) and arguments[0] in VERBS and VERBS[arguments[0]].keeps
            code = code if keeps else code or failed
        return code


def _answer(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # argparse and Hydra
        if isinstance(stop.code, str):
            raise
        return stop.code or 0
    except Interrupted as stop:
        return _say(str(stop), 128 + stop.signal)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except DiffoptError as error:
        return _say(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _say(f"{error.filename or 'a file'} cannot be written: {error.strerror}", 1)
        return _say(f"{error.filename or 'the system'}: {error.strerror or error}", 1)


def _say(text: str, code: int) -> int:
    say(text)
    return code


def _dispatch(arguments: list[str]) -> int:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("The working directory does not exist any more; change to another one.") from None
    if {word.split("=", 1)[0] for word in arguments} & set(HYDRA_FLAGS):
        return _function("hydra_flags:print_hydra_answer")(arguments, tuple(VERBS))
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(overview_in_words())
        return 0
    if arguments[0] == "--version":
        print(f"diffopt {__version__}")
        return 0
    name = arguments[0]
    if name not in VERBS:
        raise UsageError(f"There is no verb '{name}'.{did_you_mean(name, VERBS)} Verbs: {', '.join(VERBS)}.")
    args = build_parser(name).parse_intermixed_args(arguments[1:])
    command = _function(VERBS[name].call)
    _name_plugins_left_out()
    return command(args)


def _name_plugins_left_out() -> None:
    """Say which steps of other packages are not there; asked only where the verb has loaded any."""
    plugins = sys.modules.get("diffopt.steps.plugins")
    for left in () if plugins is None else plugins.plugins_left_out():
        say(f"note: {left}")


def _function(place: str) -> Callable[..., int]:
    """The function at MODULE:FUNCTION; each verb pays for its own imports, and ``--help`` for none."""
    module, _, name = place.partition(":")
    with no_garbage_collection():
        found: Callable[..., int] = getattr(import_module(f"diffopt.cli.{module}"), name)
    return found


def overview_in_words() -> str:
    """``diffopt --help``."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {verb.says}" for name, verb in VERBS.items())
    return (
        "usage: diffopt VERB [GROUP=OPTION …] [KEY=VALUE …]\n\n"
        "Compose an optimization recipe for a diffusers pipeline, prove that it did what it says, measure it.\n\n"
        f"verbs:\n{verbs}\n\n"
        "A word of the form GROUP=OPTION chooses an option (diffopt ls), KEY=VALUE sets one of its values\n"
        "(diffopt show). diffopt VERB --help says more; --cfg job, --info and --shell-completion are Hydra's own:\n"
        '  eval "$(diffopt -sc install=bash)"   completes groups, options and keys in this shell'
    )


def build_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one verb."""
    verb = VERBS[name]
    parser = argparse.ArgumentParser(
        prog=f"diffopt {name}",
        description=f"{verb.says[0].upper()}{verb.says[1:]}.",
        epilog=f"example: {verb.example}" if verb.example else None,
        allow_abbrev=False,
    )
    if verb.words:
        parser.add_argument(verb.words, nargs="*", metavar=METAVARS[verb.words])
    for flag in verb.flags:
        settings = dict(FLAGS[flag])
        short, name = settings.pop("short", None), str(settings.pop("flag", flag))
        parser.add_argument(*((str(short),) if short else ()), name, **settings)  # type: ignore[arg-type]
    return parser


if __name__ == "__main__":
    sys.exit(main())
