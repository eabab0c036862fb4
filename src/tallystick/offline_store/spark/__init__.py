"""The point-in-time rule on Spark, for sources beyond one machine."""
