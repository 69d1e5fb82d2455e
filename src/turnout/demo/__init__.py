"""The demonstration: a public data set with ratings, and a small model that pip can install."""
