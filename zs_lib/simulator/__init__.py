"""The simulation LLM: its training pairs, and how faithful it is."""

QUERIES_FILE = "queries.csv"
"""The file in a fidelity's run folder with one line per query."""
