"""Fuseline on a Ray cluster."""
