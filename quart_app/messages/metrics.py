"""The metrics of the message service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from quart_app.messages.provider import ProviderOutcome


class MessageMetrics:
    """The metrics of one replica."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.delivered = Counter(
            "mesh_messages_delivered", "messages delivered", ["provider", "reason"], registry=registry
        )
        self.undelivered = Counter("mesh_messages_undelivered", "messages not delivered", ["reason"], registry=registry)
        self.paid_avoidable = Counter(
            "mesh_messages_paid_avoidable",
            "messages paid for while the free provider may have been open; should stay 0",
            registry=registry,
        )
        self.in_flight = Gauge("mesh_messages_in_flight", "messages in progress", registry=registry)
        self._outcomes = Counter(
            "mesh_messages_provider_requests", "requests to a provider", ["provider", "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "mesh_messages_provider_seconds",
            "time until the outcome of a request was known",
            ["provider"],
            registry=registry,
        )

    def count_outcome(self, provider: str, outcome: ProviderOutcome, seconds: float) -> None:
        """Count the outcome of one request to a provider, and the `seconds` until the outcome was known."""
        self._outcomes.labels(provider, type(outcome).__name__.lower()).inc()
        self._seconds.labels(provider).observe(seconds)
