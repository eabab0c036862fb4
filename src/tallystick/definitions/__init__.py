"""What an engineer declares, how a Feast repo is read, feature types, and the contract."""
