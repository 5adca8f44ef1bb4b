"""Verifies an archive on this machine, and writes the record to `.local_parity/`."""
