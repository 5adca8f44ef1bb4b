"""A chaos run: a real server under load, while workers die and models come and go."""
