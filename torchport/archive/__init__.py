"""The `.mar` file: reads it without trust, loads its model in process.

It also reads the record of its verification on this machine.
"""
