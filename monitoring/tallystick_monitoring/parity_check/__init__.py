"""The parity check: offline, online and API compared before anything is served."""
