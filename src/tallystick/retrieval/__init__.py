"""Features and labels for entity rows, as a model takes them. Training and audit share them."""
