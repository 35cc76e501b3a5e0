"""Attention kernels from the Hugging Face hub: compiled code that somebody else made, so only by commit and by consent.

diffusers fetches such a kernel by a version number, behind which the publisher may put new code. Here the option names
the commit, and the kernel is put where diffusers' dispatcher looks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from diffopt.errors import Refusal
from diffopt.machine import plain_yaml
from diffopt.machine.paths import shipped_conf
from diffopt.schema.record import Frozen

if TYPE_CHECKING:
    from diffusers.models.attention_dispatch import AttentionBackendName


class HubKernel(Frozen):
    """The repository that a kernel comes from, the commit of it that is run, and whether its code may be run at all."""

    repository: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    trust_remote_code: bool


@cache
def shipped_kernel_repositories() -> frozenset[str]:
    """The repositories that diffopt's own options name; any other is named on the command line alone."""
    hubs = [plain_yaml.read_plain_yaml(file)[0].get("hub") for file in (shipped_conf() / "attention").glob("*.yaml")]
    return frozenset(hub["repository"] for hub in hubs if hub is not None)


def attention_kernel_problems(kernel: HubKernel) -> Iterator[str]:
    """What the user has to decide first."""
    where = f"https://huggingface.co/{kernel.repository}"
    if kernel.revision is None:
        yield f"the kernel is not pinned: set attention.hub.revision to a commit of {where} (40 hex digits)"
    if not kernel.trust_remote_code:
        yield f"it downloads code from {where} and runs it: set attention.hub.trust_remote_code=true to allow that"


def install_kernel(backend: AttentionBackendName, kernel: HubKernel) -> None:
    """Fetch the kernel, unless the hub's cache has it, and put it into diffusers' table of kernels.

    Raises Refusal where it cannot be had: no package ``kernels``, no access to the hub, no build for this machine.
    """
    from diffusers.models import attention_dispatch as dispatch

    entry = dispatch._HUB_KERNELS_REGISTRY[backend]
    where = f"attention.hub: {kernel.repository} at {kernel.revision}"
    try:
        from kernels import get_kernel  # type: ignore[import-not-found]

        module = get_kernel(kernel.repository, revision=kernel.revision, trust_remote_code=kernel.trust_remote_code)
        entry.kernel_fn = dispatch._resolve_kernel_attr(module, entry.function_attr)
        if entry.wrapped_forward_attr is not None:
            entry.wrapped_forward_fn = dispatch._resolve_kernel_attr(module, entry.wrapped_forward_attr)
        if entry.wrapped_backward_attr is not None:
            entry.wrapped_backward_fn = dispatch._resolve_kernel_attr(module, entry.wrapped_backward_attr)
    except (ImportError, OSError, ValueError, AttributeError) as error:
        raise Refusal(f"{where} cannot be loaded: {error}") from error
