"""Data: from a log of any format to windows, and checks, descriptions and known noise for them."""
