"""What a trained model does inside: recorded, read with its own head, and tried by leaving parts of it out."""
