"""One run of a command: the client, its errors as words and exit codes, and what a signal does."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import typer

from kubediffusion.client.aio import RETRY_SECONDS, AsyncClient
from kubediffusion.client.commands import options
from kubediffusion.client.commands.exit_codes import ExitCode, exit_code_of
from kubediffusion.client.commands.output import Format, say, show_error
from kubediffusion.client.errors import KubeDiffusionError
from kubediffusion.client.retries import OnRetry

T = TypeVar("T")


@dataclass(frozen=True)
class ConnectionOptions:
    """What a command speaks to: the options that every command has.

    Attributes:
        server: Address of the HTTP API; None for what the environment says.
        namespace: The namespace of the jobs, to go through the Kubernetes API.
        api_key: The API key; None for that of the environment.
        retry: Seconds for which a request is tried again.
    """

    server: options.Server = None
    namespace: options.Namespace = None
    api_key: options.ApiKey = None
    retry: options.Retry = RETRY_SECONDS

    def client(self, *, on_retry: OnRetry | None = None) -> AsyncClient:
        """Make a client of it."""
        return AsyncClient(
            self.server, self.api_key, namespace=self.namespace, retry_seconds=self.retry, on_retry=on_retry
        )


def run(
    connection: ConnectionOptions,
    work: Callable[[AsyncClient], Awaitable[T]],
    output: Format = Format.TEXT,
    on_retry: OnRetry | None = None,
) -> T:
    """Run a command to its end.

    Ctrl-C and SIGTERM cancel the work, which tidies up; a second Ctrl-C ends it as it is.

    Raises:
        typer.Exit: It failed or was interrupted; what there is to say has been said.
    """

    async def main() -> T:
        task = asyncio.current_task()
        if task is not None and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with connection.client(on_retry=on_retry or say_retry) as client:
            return await work(client)

    try:
        return asyncio.run(main())
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except asyncio.CancelledError:
        raise typer.Exit(ExitCode.TERMINATED) from None
    except KubeDiffusionError as error:
        show_error(error, output)
        raise typer.Exit(exit_code_of(error)) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        say(f"error: {error}")
        raise typer.Exit(ExitCode.FAILED) from None


def say_retry(error: KubeDiffusionError, pause: float) -> None:
    """Say that a request is tried again, as nothing else is heard until then."""
    say(f"{error.reason}; tries again in {math.ceil(pause)} s")
