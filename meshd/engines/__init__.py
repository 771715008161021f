"""Where state is kept: the store port, and one driver a file, imported only when it is named."""
