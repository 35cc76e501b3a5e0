"""The sampler, and its schedule kept on the host.

May import ``steps.components`` and what stands below ``steps``; no other group of steps.
"""
