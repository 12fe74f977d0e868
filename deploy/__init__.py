"""Fuseline on more than one machine, and what builds, bundles and watches it."""
