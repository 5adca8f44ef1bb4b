"""Records of a worker's log in the front's: each one record, at its level, with whose it is.

log_report(Logged(9000, "linear 1.0", 40, "it failed"), "worker 9000 of linear 1.0", pid)
"""

from __future__ import annotations

import logging

from torchport.server.wire import Logged

logger = logging.getLogger(__name__)


def log_report(report: Logged, name: str, pid: int) -> None:
    """Log what the process of this name logged."""
    logger.log(
        report.level,
        "[%s] %s",
        name,
        report.message,
        extra={
            "request_ids": report.requests,
            "model": report.model or None,
            "worker": report.slot if report.slot >= 0 else None,
            "pid": pid,
            "traceback": report.traceback,
        },
    )
