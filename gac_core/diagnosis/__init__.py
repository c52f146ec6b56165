"""What `gac doctor` finds out: packages, machine, models, and a test from loading to an answer."""
