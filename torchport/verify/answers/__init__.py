"""Reads a recipe's requests and compares the handler's answers of every backend."""
