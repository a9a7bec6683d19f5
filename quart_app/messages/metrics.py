"""What Prometheus is told about messages."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from quart_app.messages.provider import Outcome


class MessageMetrics:
    """The counters of one replica."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.delivered = Counter("messages_delivered", "messages handled", ["provider", "reason"], registry=registry)
        self.undelivered = Counter("messages_undelivered", "messages not handled", ["reason"], registry=registry)
        self.paid_avoidable = Counter(
            "paid_avoidable", "messages paid for although the free provider was open; stays 0", registry=registry
        )
        self.in_flight = Gauge("messages_in_flight", "messages being worked on", registry=registry)
        self._outcomes = Counter(
            "messages_provider_requests", "requests to a provider", ["provider", "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "messages_provider_seconds", "time until a provider's outcome was known", ["provider"], registry=registry
        )

    def note(self, provider: str, outcome: Outcome, seconds: float) -> None:
        """What became of one request."""
        self._outcomes.labels(provider, type(outcome).__name__.lower()).inc()
        self._seconds.labels(provider).observe(seconds)
