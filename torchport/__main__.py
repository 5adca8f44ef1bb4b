"""`python -m torchport` is the `torchport` command."""

from torchport.cli.app import main

main()
