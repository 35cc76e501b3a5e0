"""Where the weights are while the pipeline runs.

May import ``steps.components`` and what stands below ``steps``; no other group of steps.
"""
