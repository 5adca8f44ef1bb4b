"""pip as a child process: `python -P -m torchport.server.models.pip_process LIFELINE FOLDER ARGUMENT...`.

LIFELINE is an inherited pipe that nothing is written to: when it closes, the server is gone, and pip and
what it has started end. pip runs in FOLDER, a model's, so that relative paths are those of the archive.
"""

from __future__ import annotations

import os
import runpy
import sys

from torchport.child_process import end_with_parent


def main() -> None:
    lifeline, folder, *arguments = sys.argv[1:]
    end_with_parent(int(lifeline))
    # Nothing is imported from the model's folder: it may have a pip of its own.
    sys.path[:] = [os.path.abspath(path) for path in sys.path]
    os.chdir(folder)
    sys.argv = ["pip", *arguments]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
