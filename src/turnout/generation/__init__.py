"""Uses of a model that writes: chat, continuations, more training rows, and how varied texts are."""
