#!/bin/sh
# The command `evergreen` of the checkout that this lies in, as .venv/bin/evergreen, where `make setup` puts it. It finds
# the checkout by its own place, so that a checkout may be moved.
self=$0
[ -L "$self" ] && self=$(readlink -f "$self")
cd "$(dirname "$self")/../.." && exec .venv/bin/python -m flows.cli "$@"
