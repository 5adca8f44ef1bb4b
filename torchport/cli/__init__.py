"""The `torchport` command: reads the command line, runs stages, prints results."""
