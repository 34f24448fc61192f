"""Evaluation: is the noise found, and does a recommender rank better on corrected histories?"""
