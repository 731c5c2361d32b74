"""The two ends of the federation, as Flower names them."""
