"""Caches between denoising steps.

May import ``steps.components`` and what stands below ``steps``; no other group of steps.
"""
