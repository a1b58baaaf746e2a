"""NETWORKS: Keras and keras.ops only, so that the same network runs on any Keras backend."""
