"""Uses of models that write: chat, continuations, more training rows, and how varied texts are."""
