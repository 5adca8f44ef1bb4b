"""The `torchport` command, which is `python -m torchport`, too."""

import sys


def main() -> None:
    """Run the command that the arguments name."""
    if sys.argv[1:2] == ["serve"]:
        # Without the other commands and what they import, a server gives its first answer sooner by a third.
        from torchport.cli.serve import main as command
    else:
        from torchport.cli.app import main as command
    command()


if __name__ == "__main__":
    main()
