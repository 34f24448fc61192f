"""The method, in the order of its stages: inject noise, train, score, calibrate, decide, suggest, correct."""
