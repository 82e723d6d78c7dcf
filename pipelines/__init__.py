"""Whole workflows on the public API: copy one and edit it."""
