"""What the areas tell each other: looks, incidents, quarantine, decisions."""
