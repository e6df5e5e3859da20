"""Servers over HTTP: retrievers and simulators."""
