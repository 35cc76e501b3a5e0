"""torch.compile in its forms, and ahead of time.

May import ``steps.components`` and what stands below ``steps``; no other group of steps.
"""
