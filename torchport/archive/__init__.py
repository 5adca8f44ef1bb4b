"""The `.mar` file: reads it without trust, opens it in process, and reads what this machine has verified of
it.
"""
