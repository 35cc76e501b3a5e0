"""A LoRA, fused into the weights or beside them.

May import ``steps.components`` and what stands below ``steps``.
"""
