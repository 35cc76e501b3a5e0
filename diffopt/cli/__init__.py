"""The command line: verbs, progress, how plans, lists and tables are shown. Decides nothing.

May import everything; no other package imports it.
"""
