"""Reads an archive and writes this machine's record of it below `.local_parity/`."""
