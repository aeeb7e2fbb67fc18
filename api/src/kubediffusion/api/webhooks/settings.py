"""The settings of the deliverer of webhooks, read from the environment once."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from kubediffusion.api.settings import Hosts, RootPath
from kubediffusion.api.webhook_urls import AllowedHosts
from kubediffusion.api.webhooks.addresses import Network
from kubediffusion.resources.runtime.settings import LogLevel


def _check_networks(networks: str) -> str:
    _networks(networks)
    return networks


def _networks(networks: str) -> tuple[Network, ...]:
    return tuple(ip_network(part.strip()) for part in networks.split(",") if part.strip())


class WebhookSettings(BaseSettings):
    """Settings of the deliverer; each comes from ``KUBEDIFFUSION_<NAME>``."""

    model_config = SettingsConfigDict(
        env_prefix="KUBEDIFFUSION_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    namespaces: str = ""
    """Namespaces whose jobs' webhooks are delivered, separated by commas; empty for all of the cluster."""
    lease_namespace: Annotated[str, Field(min_length=1)] = "default"
    """Namespace of the Lease by which the replicas agree on which of them delivers."""
    lease_name: Annotated[str, Field(min_length=1)] = "kubediffusion-webhooks"
    """Name of that Lease."""
    bind_address: str = ""
    """Address of the endpoint for probes and metrics; empty for every address of the Pod, of IPv4 and IPv6."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8082
    """Port of the endpoint for probes and metrics."""
    pod_name: Annotated[str, Field(alias="POD_NAME")] = ""
    """Name of this replica; the host's and the process's where there is none."""
    log_level: LogLevel = "INFO"
    """Least severe level to log."""
    root_path: RootPath = ""
    """Prefix of the API's paths as clients see them."""

    webhook_allowed_hosts: Hosts = ""
    """Hosts, separated by commas, that may have private addresses and be called over http, each a name or name:port."""
    webhook_denied_networks: Annotated[str, AfterValidator(_check_networks)] = ""
    """Networks, separated by commas, that are never called although their addresses are public: the cluster's own."""
    webhook_secrets: Annotated[str, Field(pattern=r"^[^\s,][^,]*(,[^,]+)*$")] = "kubediffusion-webhooks"
    """Secrets that jobs may be signed with, separated by commas; the first is the default."""
    webhook_unsigned: bool = False
    """Whether a message is sent without a signature where the default Secret does not exist."""
    webhook_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 15
    """How long one attempt may take."""
    webhook_retry_seconds: Annotated[float, Field(ge=0, le=7 * 86_400)] = 86_400
    """How long after the first attempt an event is sent again."""

    @property
    def namespace_list(self) -> list[str]:
        """The namespaces to serve; empty for all."""
        return [name.strip() for name in self.namespaces.split(",") if name.strip()]

    @property
    def secret_list(self) -> list[str]:
        """The Secrets to sign with."""
        return [name.strip() for name in self.webhook_secrets.split(",")]

    @property
    def allowed_hosts(self) -> AllowedHosts:
        """The hosts that may be private."""
        return AllowedHosts(self.webhook_allowed_hosts)

    @property
    def denied_networks(self) -> tuple[Network, ...]:
        """The networks that are never called."""
        return _networks(self.webhook_denied_networks)
