"""The run store: every run is a folder that survives being killed."""

from zs_lib.runs.store import Problem, Progress, Run, RunStore, kind_of
