"""The command ``egcam``: one module a subcommand, and what they share."""
