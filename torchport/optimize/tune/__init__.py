"""Reads what has passed, measures configurations on running servers, and writes `tuning.json` and
`tuning.html`.
"""
