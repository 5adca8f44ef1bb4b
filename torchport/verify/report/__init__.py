"""Reads a certificate and its measures and writes `parity.html`."""
