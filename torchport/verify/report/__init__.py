"""Reads a certificate, its measures and what servers answered; writes `parity.html`."""
