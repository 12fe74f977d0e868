#!/bin/sh
# Install the part that this file lies in; see install.py. Once for each part that has arrived, in any order.
exec "${PYTHON:-python3}" "$(dirname "$0")/install.py" "$@"
