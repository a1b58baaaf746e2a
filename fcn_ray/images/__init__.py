"""PIXELS: numpy arrays in, numpy arrays out."""
