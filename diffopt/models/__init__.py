"""What is known of a model without torch: its files, facts, sizes, pictures; and how its pipelines are called.

May import ``schema`` and ``machine``.
"""
