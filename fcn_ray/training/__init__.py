"""LEARNING: Ray Train workers, one replica of MultiWorkerMirroredStrategy each."""
