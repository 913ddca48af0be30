"""Methods that predict hidden parts of an image from the visible ones."""
