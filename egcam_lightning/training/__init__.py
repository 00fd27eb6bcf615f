"""What knows a Trainer: one fit's session, when snapshots are taken, and how they reach the loggers."""
