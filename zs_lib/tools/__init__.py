"""Tools around the study: benchmarks, planning, serving, building data; imported by `cli` only."""
