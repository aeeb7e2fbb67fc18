"""Structured logs: one JSON object a line, with the job's name where a line concerns one."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys

from kubediffusion.resources.base import format_time

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Write a record as JSON: time, level, logger, message, what was passed as ``extra``, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the record's line."""
        line: dict[str, object] = {
            "time": format_time(dt.datetime.fromtimestamp(record.created, dt.UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD and not key.startswith("_")}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str) -> None:
    """Send every logger's records to standard error as JSON lines.

    Args:
        level: The least severe level to write, for example ``INFO``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Each request of these would be a line.
    for noisy in ("aiohttp.access", "botocore", "boto3", "urllib3", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
