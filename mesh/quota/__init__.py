"""The number of requests that a provider still accepts, counted once for all replicas."""

from mesh.quota.quota import Allowance, Closed, Granted, Probing, Quota, Reservation, Verdict

__all__ = ["Allowance", "Closed", "Granted", "Probing", "Quota", "Reservation", "Verdict"]
