"""What was measured and what is read from it: rows, studies, tables, comparisons. Imports no torch.

May import ``config`` (the layouts of published pages are sweeps) and what stands below.
"""
