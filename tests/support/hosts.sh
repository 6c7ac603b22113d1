#!/bin/bash
# tests/support/hosts.sh: pretend hosts on this machine, joined by a network of their own.
#
#   hosts.sh check                   exit 0 where this machine allows them, else says why not
#   hosts.sh DIR up N [RATE]         hosts NAME-0 .. NAME-(N-1), NAME being the last part of DIR
#                                    (a letter, then letters and digits);
#                                    RATE, as of tc(8), limits each link both ways: 1gbit
#   hosts.sh DIR names               their names, one a line
#   hosts.sh DIR hostfile SLOTS      for mpirun --hostfile
#   hosts.sh DIR exec HOST COMMAND.. in place of ssh; the command replaces this script
#   hosts.sh DIR rate RATE|none      another rate for every link
#   hosts.sh DIR cut|heal HOST       the host's cable
#   hosts.sh DIR kill HOST           power off: the cable goes silent and every process dies
#   hosts.sh DIR start HOST          power on after `kill`
#   hosts.sh DIR owner PID           takes all down as soon as the process PID is gone
#   hosts.sh DIR down                every process of the hosts is killed; DIR is removed
#
# A host is a network, a UTS and a mount namespace with its own /dev/shm (also TMPDIR) and
# /etc/hosts. Process numbers and the other files are those of the machine: what the hosts share.
# The namespaces are held by one sleeping process each and by nothing else, so that nothing can
# outlive those; the network of the machine is not touched. Needs root.
set -eu

say_why() { echo "no pretend hosts: $*"; exit 1; }
die() { echo "hosts.sh: $*" >&2; exit 1; }

if [ "${1:-}" = check ]; then
  [ "$(id -u)" = 0 ] || say_why "not root"
  for program in ip tc nsenter unshare; do
    command -v $program > /dev/null || say_why "$program is not installed (launch/packages.txt)"
  done
  why=$(unshare --mount --uts --net --propagation slave bash -euc '
    ip link add link0 type veth peer name link1
    ip link add bridge type bridge
    tc qdisc add dev link0 root tbf rate 1gbit burst 128k latency 20ms
    hostname check
    mount -t tmpfs none /dev/shm' 2>&1) || say_why "$why"
  exit 0
fi

[ $# -ge 2 ] || { sed -n '2,22s/^# \{0,1\}//p' "$0"; exit 2; }
case $2 in
  up) mkdir -p "$1" ;;
  down) [ -d "$1" ] || exit 0 ;;
esac
dir=$(cd "$1" && pwd)
name=$(basename "$dir")
subnet=10.77.0
shift

# A holder is identified by its process number and its network namespace.
alive() { [ -s "$dir/$1.pid" ] && [ "$(readlink "/proc/$(cat "$dir/$1.pid")/ns/net")" = "$(cat "$dir/$1.net")" ]; }
holder() { alive "$1" || die "there is no host $1 in $dir"; cat "$dir/$1.pid"; }
on_switch() { nsenter --target "$(holder switch)" --net "$@"; }
index() { echo "${1##*-}"; }
names() { [ ! -s "$dir/names" ] || cat "$dir/names"; }

# hold WHAT: a process in namespaces of its own.
hold() {
  setsid unshare --mount --uts --net --propagation slave bash -c '
    mount -t tmpfs -o mode=1777 none /dev/shm
    [ ! -s "$1/hosts" ] || mount --bind "$1/hosts" /etc/hosts
    hostname "$2"
    ip link set lo up
    # Else mpirun repeats for a quarter of an hour what it has sent to a host that then died
    # (docs/running.md).
    echo 5 > /proc/sys/net/ipv4/tcp_retries2
    readlink /proc/self/ns/net > "$1/$2.net"
    echo $$ > "$1/$2.pid"
    exec sleep infinity' hold "$dir" "$1" > /dev/null 2>&1 < /dev/null &
  for _ in {1..500}; do
    alive "$1" && return
    sleep 0.01
  done
  die "the namespaces of $1 did not come up"
}

# Every process in the network namespaces of these hosts, but the holders.
processes() {
  local host same=() holders=" "
  for host; do
    same+=(-o -lname "$(sed 's/[][]/\\&/g' "$dir/$host.net")")
    holders+="$(cat "$dir/$host.pid") "
  done
  find /proc/[0-9]*/ns/net -maxdepth 0 \( "${same[@]:1}" \) 2> /dev/null | cut -d/ -f3 |
    while read -r pid; do
      [[ $holders == *" $pid "* ]] || ! grep -qs '^State:.[^ZX]' "/proc/$pid/status" || echo "$pid"
    done
}
# A process that is being killed may still have made another one.
kill_processes() {
  local pids
  for _ in {1..50}; do
    mapfile -t pids < <(processes "$@")
    [ ${#pids[@]} = 0 ] && return
    kill -9 "${pids[@]}" 2> /dev/null || true
    sleep 0.02
  done
  die "processes of $* cannot be killed: ${pids[*]}"
}

set_rate() {
  local host port
  for host in $(names); do
    port=port$(index "$host")
    for link in "on_switch tc qdisc DO dev $port root" \
      "nsenter --target $(holder "$host") --net tc qdisc DO dev eth0 root"; do
      ${link/DO/del} 2> /dev/null || true
      [ "$1" = none ] || ${link/DO/add} tbf rate "$1" burst 128k latency 20ms
    done
  done
}

# Puts the cable in and makes the hosts forget that there was none.
plug() {
  local host
  on_switch ip link set "port$(index "$1")" up
  for _ in {1..100}; do
    on_switch bridge link show dev "port$(index "$1")" | grep -q 'state forwarding' && break
    sleep 0.02
  done
  for host in $(names); do nsenter --target "$(holder "$host")" --net ip neigh flush all; done
}

up() {
  local n=$1 rate=${2:-none} i host link
  [[ $name =~ ^[a-z][a-z0-9]*$ ]] || die "'$name' cannot be part of host names"
  [ -z "$(names)" ] || down
  mkdir -p "$dir"
  {
    echo "127.0.0.1 localhost"
    for ((i = 0; i < n; i++)); do echo "$subnet.$((i + 1)) $name-$i"; done
  } > "$dir/hosts"
  : > "$dir/names"
  hold switch
  on_switch ip link add bridge type bridge
  on_switch ip link set bridge up
  for ((i = 0; i < n; i++)); do
    host=$name-$i
    echo "$host" >> "$dir/names"
    hold "$host"
    link="link add port$i type veth peer name eth0 netns $(holder "$host")"
    printf '%s\n' "$link" "link set port$i master bridge up" | on_switch ip -batch -
    printf '%s\n' "addr add $subnet.$((i + 1))/24 dev eth0" "link set eth0 up" |
      nsenter --target "$(holder "$host")" --net ip -batch -
  done
  [ "$rate" = none ] || set_rate "$rate"
}

down() {
  local host hosts=()
  for host in $(names) switch; do
    if alive "$host"; then hosts+=("$host"); fi
  done
  if [ ${#hosts[@]} != 0 ]; then
    kill_processes "${hosts[@]}"
    for host in "${hosts[@]}"; do kill -9 "$(cat "$dir/$host.pid")" 2> /dev/null || true; done
  fi
  rm -rf "$dir"
}

case $1 in
  up) up "${@:2}" ;;
  down) down ;;
  names) names ;;
  hostfile) names | sed "s/\$/ slots=$2/" ;;
  exec)
    host=$2
    shift 2
    exec env AMUR_HOSTS="$dir" TMPDIR=/dev/shm nsenter --target "$(holder "$host")" \
      --mount --uts --net --wd="$PWD" "$@"
    ;;
  rate) set_rate "$2" ;;
  cut) on_switch ip link set "port$(index "$2")" down ;;
  heal) plug "$2" ;;
  start)
    plug "$2"
    rm -f "$dir/$2.off"
    ;;
  kill)
    touch "$dir/$2.off"
    on_switch ip link set "port$(index "$2")" down
    kill_processes "$2"
    ;;
  owner)
    setsid bash -c 'while kill -0 "$1"; do sleep 1; done; exec "$2" "$3" down' \
      owner "$2" "$(readlink -f "$0")" "$dir" > /dev/null 2>&1 < /dev/null &
    ;;
  *) die "unknown command '$1'" ;;
esac
