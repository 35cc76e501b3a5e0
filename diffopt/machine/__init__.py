"""What is here: paths, files, processes, GPUs, the CPU, installed packages, other interpreters, compile caches.

Knows no recipe. May import ``schema``, ``errors`` and ``version``; torch only inside functions that a worker calls.
"""
