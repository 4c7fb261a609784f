"""Scans in C."""
