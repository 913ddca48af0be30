"""Methods in which images are put into groups and the group is predicted."""
