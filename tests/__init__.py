"""Packages, so that test files and conftest.py of different rooms may have the same name."""
