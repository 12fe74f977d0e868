"""TLS of the server: the files of its certificate, their reload, and who a client's certificate says it is."""
