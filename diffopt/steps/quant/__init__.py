"""Weights and products in fewer bits.

May import ``steps.components``, ``steps.precision`` and what stands below ``steps``.
"""
