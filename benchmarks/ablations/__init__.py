"""What the parts of a detector are worth."""
