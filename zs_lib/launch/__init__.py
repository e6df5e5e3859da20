"""Make many runs in parallel: scheduler, executors, workers, and the notebooks as one study."""
