"""Methods in which a student predicts the outputs of a teacher that follows it."""
