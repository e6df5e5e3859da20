"""What the study can do without; only `cli` imports from here."""
