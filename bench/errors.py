"""What keeps a measurement from being one."""

from torchport.errors import TorchportError


class BenchmarkError(TorchportError):
    """A contender that cannot be started, answers wrongly, or fails requests while it is measured."""
