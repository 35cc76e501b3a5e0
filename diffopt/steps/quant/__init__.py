"""Weights and products in fewer bits.

May import ``steps.components`` and what stands below ``steps``.
"""
