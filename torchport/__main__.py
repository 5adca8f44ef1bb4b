"""`python -m torchport` is the `torchport` command."""

from torchport.cli import main

main()
