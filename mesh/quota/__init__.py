"""One allowance that all replicas share."""

from mesh.quota.quota import Allowance, Closed, Granted, Probing, Quota, Reservation, Verdict

__all__ = ["Allowance", "Closed", "Granted", "Probing", "Quota", "Reservation", "Verdict"]
