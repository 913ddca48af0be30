"""Learning from labels: the reference that methods without labels are compared with."""
