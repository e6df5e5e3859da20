"""Many runs side by side: schedulers, executors, workers, and the notebooks as one study."""
