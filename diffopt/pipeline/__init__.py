"""The worker's side: a pipeline is loaded, optimized, proven, called and timed. All of torch is here.

May import ``results`` and what stands below; never ``run``, with which it talks by files.
"""
