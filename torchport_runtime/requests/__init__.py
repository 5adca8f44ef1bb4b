"""Reads requests into tensors, joins them to batches, and writes answers."""
