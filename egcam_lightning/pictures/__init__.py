"""From maps to pixels."""
