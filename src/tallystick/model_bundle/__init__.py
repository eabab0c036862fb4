"""A trained model on disk: bundle, model matrix, compiled trees, reference statistics."""
