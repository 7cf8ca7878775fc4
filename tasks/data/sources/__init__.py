"""Where the files of a table come from: an interface, and a class for each kind of address."""
