"""Training sets and materialization, measured against Feast's stores and the engines' limits."""
