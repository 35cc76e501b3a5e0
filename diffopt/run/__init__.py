"""The parent's side: which cells run where, one worker process each, a row for whatever becomes of it.

Never imports torch. May import ``results`` and what stands below; never ``pipeline``.
"""
