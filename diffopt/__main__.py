"""``python -m diffopt``."""

import sys

from diffopt.cli import main

sys.exit(main())
