"""APPLYING: Ray Data streams a collection through actors that hold the network."""
