"""What keeps strangers out, for all services: the limit on guessing, Basic authentication, secrets, the audit log."""
