"""The run store: every run is a folder that survives being killed."""

from zs_lib.runs.run import Run, StepCallback
from zs_lib.runs.store import RunStore, kind_of
