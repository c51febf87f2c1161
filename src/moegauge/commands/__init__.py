"""One module per command; each exposes `command` and is imported only when it runs.

Only these modules print.
"""
