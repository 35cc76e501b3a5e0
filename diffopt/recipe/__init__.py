"""One cell, and why it cannot work: recipe, plan, rules, lock files, labels; and how cells are launched.

Imports no torch and no Hydra. May import ``steps`` and what stands below.
"""
