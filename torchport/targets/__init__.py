"""Starts servers as child processes, and checks archives on them.

Their answers are recorded in `serving.json`.
"""
