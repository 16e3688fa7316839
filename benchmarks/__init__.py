"""Measurements beside the tools that users would pick instead; none of it runs in the tests."""
