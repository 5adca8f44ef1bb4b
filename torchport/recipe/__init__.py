"""What a user writes: reads a recipe and its handler, checks them, and gives their parameters, requests,
samples and inputs.
"""
