"""Where the shipped configs lie. Knows no Hydra, so that whoever only reads one of them does not pay for it."""

from __future__ import annotations

from pathlib import Path


def shipped_conf() -> Path:
    """Return ``conf/``: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
