"""Models with random weights: weights drawn from configs, tokenizers made without a vocabulary.

Imported by workers only, since it needs torch.
"""
