#!/bin/bash
# tests/support/hosts_rsh.sh [OPTIONS] HOST COMMAND...: what mpirun calls in place of ssh, under
# `hosts.sh DIR exec`. Like ssh it does not notice that the host was switched off.
while [[ $1 == -* ]]; do shift; done
host=$1
shift
"$(dirname "$0")/hosts.sh" "$AMUR_HOSTS" exec "$host" /bin/sh -c "$*" &
trap 'kill $! 2> /dev/null' TERM INT HUP
wait $!
code=$?
while [ -e "$AMUR_HOSTS/$host.off" ]; do sleep 0.2; done
exit $code
