"""``python -m kubediffusion.local.node``: a process node, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys

from kubediffusion.local.node.access import Access
from kubediffusion.local.node.agent import Agent
from kubediffusion.local.node.devices import Addresses
from kubediffusion.local.node.logs import LogServer
from kubediffusion.local.node.registration import Registration
from kubediffusion.local.node.runner import Node
from kubediffusion.local.node.settings import NodeSettings, parse
from kubediffusion.local.node.workplace import ApiServer
from kubediffusion.local.reservations import LOOPBACK
from kubediffusion.resources.apiserver.client import KubernetesClient


async def serve(settings: NodeSettings) -> None:
    """Run the node until SIGTERM or SIGINT."""
    async with await KubernetesClient.connect("kubediffusion-process-node") as client:
        devices = settings.make_devices()
        node = Node(
            name=settings.name,
            address=LOOPBACK,
            folder=settings.folder,
            logs=settings.logs,
            access=Access(client),
            server=ApiServer(settings.server, settings.authority),
            devices=devices,
            addresses=Addresses(settings.network),
            backoff=settings.backoff,
        )
        agent = Agent(client, node)
        logs = LogServer(agent.find)
        await logs.start(settings.port, settings.certificate, settings.key, settings.authority)
        registration = Registration(
            client, settings.name, node.address, settings.port, settings.capacity(devices.count)
        )
        work = asyncio.gather(agent.run(), registration.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            await logs.stop()


def main() -> None:
    """Run the node that the command line describes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(serve(parse(sys.argv[1:])))


if __name__ == "__main__":
    main()
