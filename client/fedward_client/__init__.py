"""What runs inside a hospital: cohort, policy, approval, ledger, audit log, trainer and daemon."""
