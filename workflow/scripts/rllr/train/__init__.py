"""Training on fixed rows: supervised fine-tuning and reward models."""
