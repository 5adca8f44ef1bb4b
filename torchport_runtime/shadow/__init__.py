"""Reads a share of live traffic, runs it on a second backend in a process of its own, and writes how the
answers differ.
"""
