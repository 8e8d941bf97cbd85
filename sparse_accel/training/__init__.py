"""Training: from flags to a trained model."""
