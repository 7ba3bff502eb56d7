"""Group knowledge transfer (FedGKT) over MPI: small CNNs train at the edge, one large CNN on the server."""

__version__ = "0.1.0"
