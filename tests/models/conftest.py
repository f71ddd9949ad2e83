"""Fixtures of the tests in this folder."""

from tests.models.fixtures import files, home, threads, toy

__all__ = ["files", "home", "threads", "toy"]
