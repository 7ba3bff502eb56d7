"""What every algorithm shares: the worker's loop, the clients it hosts, and the server with its feature bank."""
