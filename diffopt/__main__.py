"""``python -m diffopt``."""

from __future__ import annotations

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # Python put the working directory there: a file in it must not stand in for a library

from diffopt.cli.main import main

sys.exit(main())
