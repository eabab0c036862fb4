"""The data sources of Feast views: Parquet files and Delta tables."""
