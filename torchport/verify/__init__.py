"""Reads the artifacts and writes `parity.json`, `measures.json`, `parity.html` and `evidence.npz`;
verifies archives again on this machine.
"""
