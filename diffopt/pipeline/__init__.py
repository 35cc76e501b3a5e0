"""The worker's side: a pipeline is loaded, optimized, proven, called and timed, by torch and diffusers.

Whatever becomes of it is an outcome, which ``run`` makes a row of. May import ``results`` and what stands below; never
``run``, with which it talks by files.
"""
