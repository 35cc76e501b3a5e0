"""The nouns as frozen data: models, devices, workloads, steps, runtimes, and how a record becomes an id.

Reads no file and probes nothing. May import pydantic, and of diffopt ``errors`` alone.
"""
