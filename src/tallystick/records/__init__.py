"""Records that the areas share: looks, incidents, quarantine, decisions, and the causes."""
