"""The command lines of serve, classify, health, doctor and engine."""
