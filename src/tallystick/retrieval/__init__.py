"""Features and labels for entity rows, as a model takes them; shared by training and audit."""
