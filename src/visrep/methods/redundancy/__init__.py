"""Methods that make the features of an image agree across views and differ from each other."""
