"""Other people's programs that run routed models. Leaves: nothing else imports them."""
