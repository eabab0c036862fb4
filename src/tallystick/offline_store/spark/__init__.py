"""The fold on Spark: sources beyond one machine, with the answers of the fold on DuckDB."""
