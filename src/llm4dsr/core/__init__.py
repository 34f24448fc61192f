"""Infrastructure that knows no recommender: arrays, files, hashes, finished parts, devices, memory, progress."""
