"""What was measured and what is read from it: rows, studies, tables, comparisons. Imports no torch.

May import ``config`` (for layouts of published sweeps) and what stands below.
"""
