"""JSON logs: one object a line, with the job's name where a line concerns one.

structlog was measured as the formatter of the same fields (``ProcessorFormatter``, since libraries log through the
standard library): 20.4 µs a line instead of 9.8, byte for byte the same output, from as many lines of our own, as its
processors would be ours too. docs/adr/0017 has the table.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
import threading
from collections.abc import Iterable
from types import TracebackType

from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.schema import format_time

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time, level, logger, message, the fields of ``extra``, the traceback as ``exception``.

    Args:
        secrets: Values that no line may hold, wherever they come from: an error of a library may quote its input.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._redactor = Redactor(secrets)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line of JSON, secrets replaced by ``***``."""
        line: dict[str, object] = {
            "time": format_time(dt.datetime.fromtimestamp(record.created, dt.UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD and not key.startswith("_")}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self._redactor.redact(json.dumps(line, default=str))


def _log_end(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Log what ends the process or a thread: Python itself would print it with every secret that it quotes."""
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    logging.getLogger(__name__).critical("ended by a defect", exc_info=(kind, error, trace))


def configure_logging(level: str, secrets: Iterable[str] = ()) -> None:
    """Send every logger's records to standard error as JSON lines, with Python's warnings and what ends the process.

    Args:
        level: The least severe level to write, for example ``INFO``.
        secrets: Values that no line may hold.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Python itself would print them in lines of its own, and they may quote what they are about.
    logging.captureWarnings(capture=True)
    sys.excepthook, threading.excepthook = _log_end, lambda ended: _log_end(*ended[:3])
    # Each request of these would be a line.
    for noisy in ("aiohttp.access", "botocore", "boto3", "urllib3", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
