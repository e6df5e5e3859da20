"""The simulation LLM: its training pairs, and how faithful it is."""
