"""Structured logs: one JSON object a line, with the job's name where a line concerns one."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from collections.abc import Iterable

from kubediffusion.resources.schema import format_time

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Write a record as JSON: time, level, logger, message, what was passed as ``extra``, and the traceback.

    Args:
        secrets: What no line may hold, wherever it comes from: an error of a library may quote what it was given.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        # As they stand within a line.
        self._secrets = [json.dumps(secret)[1:-1] for secret in secrets if secret]

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
        text = json.dumps(line, default=str)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def configure_logging(level: str, secrets: Iterable[str] = ()) -> None:
    """Send every logger's records to standard error as JSON lines.

    Args:
        level: The least severe level to write, for example ``INFO``.
        secrets: What no line may hold.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Each request of these would be a line.
    for noisy in ("aiohttp.access", "botocore", "boto3", "urllib3", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
