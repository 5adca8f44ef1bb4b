"""Reads what has passed and writes `NAME-VERSION.mar`, with how it is served."""
