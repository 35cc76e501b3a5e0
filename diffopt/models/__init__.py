"""What is known of a model without torch: its files, facts, sizes, pictures; and how its pipelines are called.

Only ``random`` (weights drawn from configs) and ``calls`` are torch's. May import ``machine`` and what stands below.
"""
