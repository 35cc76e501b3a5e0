"""Methods of a pipeline's parts, wrapped for a while on the instance: what is compiled or hooked stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced_method(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """``owner.name`` wrapped on the instance, and put back as it was."""
    inner = getattr(owner, name)
    own = name in vars(owner)  # else it is the class's method, and deleting ours brings it back
    setattr(owner, name, wrap(inner))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, inner)
        else:
            delattr(owner, name)
