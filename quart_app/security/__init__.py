"""What several services need to keep strangers out: the audit log."""
