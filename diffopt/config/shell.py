"""Hydra's own flags: ``--cfg``, ``--info``, ``--hydra-help`` and shell completion, over our data-only configs.

Only here is a Hydra application made, for one command that prints something and ends; it never runs a job.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from diffopt.config.composer import PRIMARY
from diffopt.config.source import DataSource
from diffopt.errors import UsageError
from diffopt.machine.paths import shipped_conf


def answer_as_hydra(argv: Sequence[str], folders: Sequence[Path]) -> None:
    """Let Hydra answer ``argv`` (overrides and its own flags); prints to stdout.

    Raises UsageError for whatever Hydra does not accept.
    """
    from hydra import version
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra._internal.hydra import Hydra
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    version.setbase("1.3")
    Plugins.instance()  # completion and --info plugins are discovered by it
    SourcesRegistry.instance().register(DataSource)
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for index, folder in enumerate((shipped_conf(), *(folder.resolve() for folder in folders))):
        path.append("user" if index else "main", f"{DataSource.scheme()}://{folder}")
    path.append("schema", "structured://")
    args = get_args_parser().parse_args(list(argv))
    if foreign := [word for word in args.overrides if "hydra." in word.split("=")[0] or word.startswith(("+", "~"))]:
        raise UsageError(f"{foreign[0]}: Hydra itself is not configured here, and keys are neither added nor removed.")
    hydra = Hydra.create_main_hydra2(task_name="diffopt", config_search_path=path)
    try:
        if args.hydra_help:
            hydra.hydra_help(config_name=PRIMARY, args_parser=get_args_parser(), args=args)
        elif args.cfg:
            hydra.show_cfg(PRIMARY, args.overrides, cfg_type=args.cfg, package=args.package, resolve=args.resolve)
        elif args.info:
            hydra.show_info(args.info, config_name=PRIMARY, overrides=args.overrides)
        else:
            hydra.shell_completion(config_name=PRIMARY, overrides=args.overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(" ".join(str(error).split("Config search path:")[0].split())) from error
    finally:
        GlobalHydra.instance().clear()


def overrides_without_verb(line: str, verbs: Sequence[str]) -> str:
    """``diffopt run -m comp`` as Hydra's completion expects it: no verb, flags before the overrides."""
    words = line.split()
    rest = [word for word in words[1:] if word not in verbs[:] or words.index(word) != 1]
    flags = [word for word in rest if word.startswith("-")]
    plain = [word for word in rest if not word.startswith("-")]
    return " ".join((words[0], *flags, *plain)) + (" " if line.endswith(" ") else "")


def print_hydra_completions(line: str, verbs: Sequence[str], argv: Sequence[str], folders: Sequence[Path]) -> None:
    """Print completions of ``line``: the verbs for the first word, Hydra's groups, options and keys after it."""
    words = line.split()
    if len(words) < 2 and line.endswith(" ") or len(words) == 2 and not line.endswith(" "):
        started = words[1] if len(words) == 2 else ""
        print(" ".join(verb for verb in verbs if verb.startswith(started)))
        return
    os.environ["COMP_LINE"] = overrides_without_verb(line, verbs)
    answer_as_hydra(argv, folders)
