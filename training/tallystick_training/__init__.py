"""Makes models: data sets, training, evaluation, gates, registry and retraining."""
