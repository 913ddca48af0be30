"""Methods that learn to name the patches of an image by codes, for methods that then predict those names."""
