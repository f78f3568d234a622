"""What a model is worth: losses, scores of generated answers with their uncertainty, and reports of them."""
