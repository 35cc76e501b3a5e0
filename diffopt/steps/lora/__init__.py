"""A LoRA, fused into the weights or beside them.

May import ``steps.components``, what it measures of ``memory`` and ``quant``, and what stands below ``steps``.
"""
