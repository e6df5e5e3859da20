"""Language models: loading, generation, supervised fine-tuning."""
