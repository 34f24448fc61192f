"""What soft tokens are made from: title vectors, and co-occurrence counts that leave the own history out."""
