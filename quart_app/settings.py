"""The application's settings; the mesh's are in `mesh.settings`, each service's in its own folder."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from mesh import settings_config
from quart_app.registry import SERVICES


def host_and_port(host: str, port: int) -> str:
    """Return "host:port" as it stands in a URL, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class AppSettings(BaseSettings):
    """How one replica listens, drains and logs."""

    model_config = settings_config("")

    host: str = Field("127.0.0.1", description="address to listen on; in a container 0.0.0.0, or :: for IPv6 and IPv4")
    port: int = Field(8000, ge=0, le=65535, description="public port; 0: any free one")
    private_port: int = Field(8001, ge=0, le=65535, description="port for other replicas and for operators")
    advertise_host: str = Field("", description="host at which other replicas reach this one; empty: found out")
    listen_fd: int = Field(
        -1, description="file descriptor of a listening socket that the replicas of this machine share; -1: none"
    )
    listen_when_ready: bool = Field(
        False, description="open the public port only when ready, for a balancer that looks at nothing but the port"
    )
    services: str = Field(",".join(SERVICES), description="services to run, separated by commas")
    replicas: int = Field(
        0,
        ge=0,
        description="number of replicas that the mesh should have; with fewer, the alert MeshReplicasMissing fires; "
        "0: not known",
    )
    service_wait_ms: int = Field(
        10_000,
        ge=0,
        description="how long a starting replica waits for services that are neither ready nor failed, such as "
        "grades that are being restored, before it serves the others",
    )
    drain_ms: int = Field(
        0,
        ge=0,
        description="after SIGTERM a replica serves for this long, so that a balancer can notice that it is not ready; "
        "set two health intervals of the balancer",
    )
    max_body_bytes: int = Field(2 << 20, ge=1024, description="largest request body; a larger one gets 413")
    max_open_bodies_bytes: int = Field(
        64 << 20,
        ge=0,
        description="bytes of unanswered request bodies held at once; beyond it 503. Less than MAX_BODY_BYTES, such as "
        "0, counts as MAX_BODY_BYTES",
    )
    max_open_bodies_bytes_per_source: int = Field(
        16 << 20,
        ge=0,
        description="bytes of unanswered request bodies held at once for one client address; beyond it 503. Less than "
        "MAX_BODY_BYTES counts as MAX_BODY_BYTES",
    )
    max_connections: int = Field(1000, ge=1, description="connections open at once on each port; beyond it 503")
    max_connections_per_source: int = Field(
        256,
        ge=1,
        description="connections open at once on each port from one client address, unless it is a trusted proxy",
    )
    trusted_proxies: str = Field(
        "", description="addresses or networks of proxies whose X-Forwarded-For is believed, comma separated"
    )
    allowed_hosts: str = Field(
        "",
        description="public host names that requests may name, comma separated; *.example.org: all below it; *: any. "
        "IP addresses, names without a dot, and names that end in .localhost, .local, .internal, .home.arpa or .test "
        "are always allowed",
    )
    body_timeout_ms: int = Field(
        5000,
        ge=100,
        description="longest wait for a request body, after which the client gets 408; a longer one suits slow "
        "clients, and lets a stalled one hold its connection for longer",
    )
    max_wait_ms: int = Field(60_000, ge=100, description="longest deadline that `Prefer: wait` may ask for")
    page_public: bool = Field(True, description="serve the landing page at / of the public port; 0: no page there")
    page: bool = Field(True, description="serve the live page at /mesh of the private port")
    page_url: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="address of the live page, to which the landing page links; a loopback address is shown only to "
        "visitors who use one themselves",
    )
    page_password: SecretStr = Field(
        SecretStr(""),
        description="password of the user `operator`, who may act on the live page; empty: the page is read-only",
    )
    page_bodies: bool = Field(True, description="show bodies of requests on the live page; 0: only their sizes")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @field_validator("services")
    @classmethod
    def _check_services(cls, value: str) -> str:
        unknown = [name for name in split_at_commas(value) if name not in SERVICES]
        if unknown:
            raise ValueError(f"no such service: {', '.join(unknown)}; there are {', '.join(SERVICES)}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: str) -> str:
        for network in split_at_commas(value):
            ip_network(network)  # raises ValueError for anything else
        return value

    @property
    def service_names(self) -> list[str]:
        """Return the services to run, in the order given."""
        return split_at_commas(self.services)


def split_at_commas(names: str) -> list[str]:
    """Return the parts of a list, without spaces around them and without empty parts."""
    return [name.strip() for name in names.split(",") if name.strip()]
