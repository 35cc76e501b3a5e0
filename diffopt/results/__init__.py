"""What was measured and what is read from it: rows, studies, tables, comparisons. Imports no torch.

May import ``recipe`` and what stands below; not ``config``: sweeps of published pages are handed to it as cells.
"""
