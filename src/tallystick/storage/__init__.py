"""Where bytes lie: locations, atomic files, locks, the background writer."""
