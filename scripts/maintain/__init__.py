"""Maintainers' tools: no part of the wheel. Each is ``python -m scripts.maintain.NAME`` in a checkout."""
