"""``python -m diffopt``."""

from __future__ import annotations

import sys

from diffopt.cli.main import main

sys.exit(main())
