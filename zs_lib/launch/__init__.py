"""Make many runs in parallel: scheduler, executors, workers, sweeps, and the notebooks as one study."""
