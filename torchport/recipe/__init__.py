"""The user's recipe and its handler: loads and checks them.

Gives their parameters, requests, samples and inputs.
"""
