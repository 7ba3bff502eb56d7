"""What travels between server and workers: messages, the form of a feature, and the transports that carry them."""
