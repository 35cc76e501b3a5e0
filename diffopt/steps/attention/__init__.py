"""Attention kernels by diffusers' dispatcher, for UNets as for transformers.

May import ``steps.components`` and what stands below ``steps``; no other group of steps.
"""
