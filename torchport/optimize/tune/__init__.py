"""Measures configurations on running servers, and chooses one to package.

Writes `tuning.json` and `tuning.html`.
"""
