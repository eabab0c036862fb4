"""Where bytes lie: locations, atomic files, file locks and the background writer."""
