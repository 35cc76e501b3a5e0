"""What this machine should be able to do, tried; each check in a process of its own.

May import everything but ``api`` and ``cli``.
"""
