"""The nouns as frozen data: models, devices, workloads, steps, runtimes, how a record becomes an id and a value a word.

Reads no file and probes nothing. May import pydantic, and of diffopt ``errors`` alone.
"""
