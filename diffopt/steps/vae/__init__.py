"""How the VAE decodes: in slices, in tiles.

May import ``steps.components`` and what stands below ``steps``; no other group of steps.
"""
