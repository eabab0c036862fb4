"""Answers requests: the HTTP API, the reader of features and the predictor."""
