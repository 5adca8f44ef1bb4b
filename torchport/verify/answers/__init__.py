"""Compares the handler's answers to a recipe's requests, for every backend."""
