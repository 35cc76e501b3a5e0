"""What this machine should be able to do, tried; each check in a process of its own.

The parent's side never imports torch; the checks do. May import everything but ``api`` and ``cli``.
"""
