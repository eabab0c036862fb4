"""The prediction log: requests, the features that were read, answers, and the labels that came.

Read ``log_writer``, ``compactor`` and ``log_reader`` first: rows go from a server's write-ahead log
to Parquet files, and readers see both.
"""
