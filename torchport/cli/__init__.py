"""The `torchport` command: reads the command line, calls one function, and prints what comes of it."""
