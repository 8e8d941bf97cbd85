"""From flags to a trained model."""
