"""Fixtures of the tests in this folder."""

from tests.models.fixtures import files, home, toy

__all__ = ["files", "home", "toy"]
