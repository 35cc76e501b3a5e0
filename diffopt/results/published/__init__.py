"""Figures that others published, and our rows in the same layouts beside them.

May import what ``results`` may.
"""
