"""The model store: files written whole or not at all, their digests, and the records that stages leave each
other.
"""
