"""The command line: verbs, progress, how plans and lists are shown.

May import everything; nothing imports it.
"""
