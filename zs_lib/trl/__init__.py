"""TRL as a trainer: an arm trained by its GRPOTrainer, and our rollouts for one of your own."""
