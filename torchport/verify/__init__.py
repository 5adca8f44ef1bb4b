"""Verifies exports and archives: `parity.json`, `measures.json`, `parity.html` and `evidence.npz`.

It compares the artifacts with the trained model, and verifies archives again on this machine.
"""
