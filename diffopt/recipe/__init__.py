"""One cell, and why it cannot work: recipe, plan, rules, lock files, labels. Imports no torch.

May import ``steps`` and what stands below.
"""
