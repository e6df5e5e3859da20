"""Stored runs to tables, intervals, claims and figures; nothing here trains."""
