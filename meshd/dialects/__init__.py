"""One body language a file: recognise, read, rewrite, meter, refuse. Pure, no I/O."""
