"""What is known of a model without torch: its files, facts, sizes, pictures; and how its pipelines are called.

``random`` alone is torch's: weights drawn from configs. May import ``machine`` and what stands below.
"""
