"""Methods that predict the embedding of one part or view of an image from another."""
