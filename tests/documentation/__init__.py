"""What the documentation says is so: its code runs, its links lead somewhere, its messages are the package's."""
