# shellcheck shell=bash
# Functions for scenarios on real ZFS; README.md lists them. Everything that they
# make is recorded in files below $LAB_TMP, so that lab_cleanup can undo exactly
# that, even from another process (guest-suite, after a time-out).

: "${LAB_DIR:?run scenarios with tests/lab/run}" "${LAB_TMP:?}" "${LAB_OUT:?}"
lab_state=$LAB_TMP/.state
mkdir -p "$lab_state/procs"
lab_checks=0 lab_failed=0 lab_cases_failed=0 lab_finished='' lab_start=${EPOCHREALTIME//[.,]/}
status=0 output='' lab_status=0 lab_catalog=''

# --- Hosts: network namespaces on one bridge, which has a namespace of its own.

lab_host() {
  local name=$1 ns=$LAB_PREFIX$1 bridge=${LAB_PREFIX}lab-bridge n host hosts names
  if [[ ! -e $lab_state/hosts ]]; then
    : >"$lab_state/hosts"
    lab_netns "$bridge"
    printf '%s\n' 'link add br0 type bridge' 'link set br0 up' | ip -n "$bridge" -batch -
  fi
  n=$(($(wc -l <"$lab_state/hosts") + 1))
  echo "$name" >>"$lab_state/hosts"
  lab_netns "$ns"
  ip -n "$bridge" -batch - <<END
link add port$n type veth peer name eth0 netns $ns
link set port$n master br0 up
END
  ip -n "$ns" -batch - <<END
link set lo up
addr add 10.77.0.$n/24 dev eth0
link set eth0 up
END
  # Written in place, so that processes already running in the other hosts see the new name, too.
  names=$(awk '{ print "10.77.0." NR, $1 }' "$lab_state/hosts")
  mapfile -t hosts <"$lab_state/hosts"
  for host in "${hosts[@]}"; do
    mkdir -p "/etc/netns/$LAB_PREFIX$host"
    printf '%s\n' '127.0.0.1 localhost' "$names" >"/etc/netns/$LAB_PREFIX$host/hosts"
  done
}

lab_namespaces() { [[ ! -e $lab_state/netns ]] || cat "$lab_state/netns"; }

lab_netns() {
  ip netns add "$1"
  echo "$1" >>"$lab_state/netns"
}

# Sets lab_n to the host's number. It sets a variable instead of printing because
# processes start slowly in emulation, and this function is called often.
lab_number() {
  local host
  lab_n=0
  while read -r host; do
    lab_n=$((lab_n + 1))
    [[ $host != "$1" ]] || return 0
  done <"$lab_state/hosts"
  echo "lab: there is no host $1" >&2
  return 1
}

lab_addr() {
  lab_number "$1" || return 1
  echo "10.77.0.$lab_n"
}

on() {
  local host=$1
  shift
  ZSYNC_HOSTNAME=$host ip netns exec "$LAB_PREFIX$host" "$@"
}

# Applies to both ends of the host's link, so that both directions are equally slow.
lab_link() {
  local host=$1 ns=$LAB_PREFIX$1 bridge=${LAB_PREFIX}lab-bridge port
  lab_number "$host" || return 1
  port=port$lab_n
  shift
  case $1 in
    up | down) ip -n "$bridge" link set "$port" "$1" ;;
    clear)
      tc -n "$ns" qdisc del dev eth0 root 2>/dev/null || true
      tc -n "$bridge" qdisc del dev "$port" root 2>/dev/null || true
      ;;
    *)
      tc -n "$ns" qdisc replace dev eth0 root netem "$@"
      tc -n "$bridge" qdisc replace dev "$port" root netem "$@"
      ;;
  esac
}

# --- Background processes.

# Sets lab_now to a process's state and start time. The process id alone is not
# enough, because another process may have it by now.
lab_proc() {
  local stat
  lab_now=''
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  # shellcheck disable=SC2086 # the fields after the name
  set -- ${stat##*) }
  lab_now="$1 ${20}"
}

lab_pid() {
  local pid
  read -r pid _ <"$lab_state/procs/$1"
  echo "$pid"
}

lab_running() {
  local pid start
  { read -r pid start <"$lab_state/procs/$1"; } 2>/dev/null || return 1
  lab_proc "$pid" && [[ ${lab_now#* } == "$start" && $lab_now != [ZX]* ]]
}

lab_daemon() {
  local host=$1 name=$2 log=$LAB_TMP/$2.log n=1
  shift 2
  if lab_running "$name"; then
    echo "lab_daemon: $name is already running" >&2
    return 1
  fi
  # A daemon that is started again gets a fresh log; older logs are NAME.log.1, .2, ...
  if [[ -e $log ]]; then
    while [[ -e $log.$n ]]; do n=$((n + 1)); done
    mv "$log" "$log.$n"
  fi
  : >"$log" # the log may be read before the process has started
  # Without this, the shell starts background processes with INT and QUIT ignored.
  (exec env --default-signal=INT,QUIT ZSYNC_HOSTNAME="$host" ZSYNC_STATE="$LAB_TMP/state/$host" \
    ip netns exec "$LAB_PREFIX$host" "$@") >>"$log" 2>&1 </dev/null &
  lab_proc $! || lab_now='X 0'
  echo "$! ${lab_now#* }" >"$lab_state/procs/$name"
}

lab_signal() {
  lab_running "$1" || { echo "lab_signal: $1 is not running" >&2; return 1; }
  kill -s "$2" "$(lab_pid "$1")"
  # Waits with stderr discarded, because the shell reports a killed background process.
  [[ $2 != KILL ]] || lab_until 10 lab_gone "$1" 2>/dev/null
}

# Sets $lab_status to the daemon's exit status. Fails if the daemon had to be killed.
lab_stop() {
  local name=$1 signal=${2:-TERM} limit=${3:-15} killed=0
  if lab_running "$name"; then
    lab_signal "$name" "$signal" || true
    if ! lab_until "$limit" lab_gone "$name" 2>/dev/null; then
      echo "lab_stop: $name did not exit within $limit s of SIG$signal" >&2
      lab_signal "$name" KILL || true
      killed=1
    fi
  fi
  # shellcheck disable=SC2034 # for the scenario
  lab_status=0
  # shellcheck disable=SC2034
  wait "$(lab_pid "$name")" 2>/dev/null || lab_status=$?
  return "$killed"
}

lab_gone() { ! lab_running "$1"; }

# lab_until SECONDS COMMAND...: waits until the command succeeds.
lab_until() {
  # In microseconds. The locale chooses the decimal separator.
  local end=$((${EPOCHREALTIME//[.,]/} + $1 * 1000000))
  shift
  until "$@"; do
    ((${EPOCHREALTIME//[.,]/} < end)) || return 1
    sleep 0.05
  done
}

lab_wait_log() {
  local name=$1 regex=$2 seconds=$3 ended=''
  lab_logged() { grep -Eqe "$regex" "$LAB_TMP/$name.log"; }
  lab_logged_or_gone() { lab_logged || lab_gone "$name"; }
  if lab_until "$seconds" lab_logged_or_gone && lab_logged; then
    return 0
  fi
  lab_running "$name" || ended=' (the process has exited)'
  echo "lab_wait_log: no line in the log of $name matches '$regex' after $seconds s$ended; the log ends with:"
  tail -n 15 "$LAB_TMP/$name.log" | sed 's/^/  | /'
  return 1
} >&2

lab_wait_port() {
  local host=$1 port=$2 seconds=$3
  lab_listening() { [[ $(ss -N "$LAB_PREFIX$host" -Hltn "sport = :$port") ]]; }
  lab_until "$seconds" lab_listening && return
  echo "lab_wait_port: nothing listens on $host port $port after $seconds s" >&2
  return 1
}

# lab_later MINUTES: continues five seconds into a later minute. In the virtual machine it sets the clock; elsewhere it
# waits.
lab_later() {
  local then=$(((EPOCHSECONDS / 60 + $1) * 60 + 5))
  if [[ $LAB_PREFIX ]]; then
    sleep $((then - EPOCHSECONDS))
  else
    date -s "@$then" >/dev/null
  fi
}

# --- Pools.

pool() { echo "$LAB_PREFIX$1"; }

# lab_pool NAME SIZE [OPTION OF ZPOOL CREATE]...
lab_pool() {
  local name=$1 size=$2 real=$LAB_PREFIX$1 file=$LAB_TMP/pools/$1
  shift 2
  if zpool list "$real" >/dev/null 2>&1; then
    echo "lab_pool: pool $real already exists" >&2
    return 1
  fi
  mkdir -p "$LAB_TMP/pools" "$LAB_TMP/mnt"
  rm -f "$file"
  truncate -s "$size" "$file"
  echo "$real" >>"$lab_state/pools"
  zpool create -o cachefile=none -O mountpoint="$LAB_TMP/mnt/$name" "$@" "$real" "$file"
}

lab_pools() {
  [[ ! -e $lab_state/pools ]] || sort -u "$lab_state/pools" | while read -r real; do
    ! zpool list -H -o name "$real" 2>/dev/null || true
  done
}

# Prints the UUID by which orders name a snapshot: version 5, derived from its GUID.
lab_uuid() {
  python3 -c 'import hashlib, sys, uuid
space = uuid.UUID("7a73796e-6300-5a46-8000-736e61707368").bytes
name = int(sys.argv[1]).to_bytes(8, "big")
print(uuid.UUID(bytes=hashlib.sha1(space + name).digest()[:16], version=5))' "$(zfs list -Hpo guid "$1")"
}

# --- Orders sent without a director. The lines of the answer go to $LAB_TMP/NAME.

# lab_order NAME HOST PORT ACTION FIELDS: sends an order with a new UUID, in the background.
lab_order() {
  local id
  read -r id </proc/sys/kernel/random/uuid
  : >"$LAB_TMP/$1"
  on "$2" nc -N localhost "$3" >"$LAB_TMP/$1" <<<"{\"OrderUUID\":\"$id\",\"Action\":\"$4\",$5}" &
}

lab_answered() { grep -q IsSuccess "$LAB_TMP/$1"; }

# lab_answer NAME FIELD...: prints these fields of the answer's final line.
lab_answer() {
  local name=$1
  shift
  # shellcheck disable=SC2046 # the fields' names
  echo $(jq -r "select(has(\"IsSuccess\")) | $(printf '.%s,' "$@")empty" "$LAB_TMP/$name")
}

# lab_moved NAME BYTES: succeeds if at least this many bytes of the stream have been sent.
lab_moved() {
  jq -se --argjson wanted "$2" '[.[].Progress.Bytes // 0] | max >= $wanted' "$LAB_TMP/$1" >/dev/null 2>&1
}

# lab_zfs SUBCOMMAND [NAME]: succeeds if such a zfs process is running, as in "lab_zfs receive tank/copy".
lab_zfs() {
  local proc line
  for proc in /proc/[0-9]*; do
    { mapfile -d '' -t line <"$proc/cmdline"; } 2>/dev/null || continue
    [[ ${line[0]-} == *zfs && " ${line[*]:1} " == *" $1 "*"${2-}"* ]] && return 0
  done
  return 1
}

# --- A real Consul, for scenarios that have the line "# consul" near the top.

# lab_consul HOST ADDRESS: starts Consul on a host. It keeps its data in memory, so a restart loses everything. ADDRESS
# is where it listens: an IP address (at port 8500) or unix://PATH.
lab_consul() {
  lab_consul_at=$2
  lab_daemon "$1" consul consul agent -dev -log-level warn -hcl "addresses { http = \"$2\" }" \
    -hcl 'unix_sockets { mode = "666" }' \
    -hcl 'disable_update_check = true' -hcl 'ports { grpc = -1, dns = -1 }'
  lab_consul_leads() { [[ $(lab_consul_ask "$1" status/leader 2>/dev/null) == *:* ]]; }
  lab_until 60 lab_consul_leads "$1"
}

# lab_consul_ask HOST PATH [METHOD [VALUE]]: requests /v1/PATH from Consul's API on a host and prints the response. (The
# consul program itself takes seconds to start in emulation.)
lab_consul_ask() {
  local to=("$lab_consul_at" 8500)
  [[ $lab_consul_at != unix://* ]] || to=(-U "${lab_consul_at#unix://}")
  printf '%s /v1/%s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s' "${3:-GET}" "$2" "$(printf %s "${4-}" | wc -c)" "${4-}" |
    on "$1" nc "${to[@]}" | sed '1,/^\r$/d'
}

# For LAB_CATALOG=consul: starts Consul, and prints the scenario's text with all policies and local configurations
# changed to use it. Consul listens on a Unix socket, which every host can reach whatever happens to the links.
lab_on_consul() {
  local at=unix://$LAB_TMP/consul.sock name=${LAB_PREFIX}lab-consul
  lab_netns "$name"
  ip -n "$name" link set lo up
  lab_consul lab-consul "$at"
  at="\\1\"consul\\1\": { \\1\"address\\1\": \\1\"$at\\1\" }"
  sed -E "s|(\\\\?)\"embedded\\\\?\": [^}]*\}|$at|g; s|(\\\\?)\"local_datasets\\\\?\":|$at, \\1\"local_datasets\\1\":|g" "$0"
}

guids() { zfs list -Hp -t snapshot -d 1 -s createtxg -o guid "$1"; }

sums() { (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r md5sum); }

# Mounts a dataset or snapshot read-only and prints the mount point.
lab_mount() {
  local dir mounted
  mkdir -p "$LAB_TMP/ro"
  dir=$(mktemp -d "$LAB_TMP/ro/XXXXXX")
  if [[ $1 == *@* ]]; then
    mount -t zfs "$1" "$dir"
  elif mounted=$(awk -v name="$1" '$1 == name && $3 == "zfs" { print $2; exit }' /proc/mounts) && [[ $mounted ]]; then
    mount -o bind,ro "$mounted" "$dir"
  elif [[ $(zfs get -H -o value mountpoint "$1") == legacy ]]; then
    mount -t zfs -o ro "$1" "$dir"
  else
    mount -t zfs -o ro,zfsutil "$1" "$dir"
  fi
  echo "$dir"
}

lab_umount() { umount "$1" && rmdir "$1"; }

# Prints all of the lab's datasets, snapshots, bookmarks and holds, for comparison.
zfs_state() {
  local pools held
  mapfile -t pools < <(lab_pools)
  ((${#pools[@]})) || return 0
  zfs list -r -t all -Hp -o name,guid,createtxg,userrefs,receive_resume_token "${pools[@]}" | LC_ALL=C sort
  mapfile -t held < <(zfs list -r -t snapshot -Hp -o userrefs,name "${pools[@]}" | awk -F '\t' '$1 > 0 { print $2 }')
  ((${#held[@]} == 0)) || zfs holds -H "${held[@]}" | cut -f 1,2 | LC_ALL=C sort | sed 's/^/hold\t/'
}

# --- Checks. The command runs in this shell and leaves its result in $status and $output.

lab_try() {
  local file=$lab_state/output.$BASHPID
  status=0
  "$@" >"$file" 2>&1 || status=$?
  { output=$(<"$file"); } 2>/dev/null
}

lab_good() {
  lab_checks=$((lab_checks + 1))
  echo "  ok $1"
}

# lab_bad DESCRIPTION DETAIL...
lab_bad() {
  lab_checks=$((lab_checks + 1)) lab_failed=$((lab_failed + 1))
  echo "  FAILED $1"
  shift
  printf '%s\n' "$@" | sed 's/^/      /'
}

lab_text() { printf '%s\n' "$1" | tail -n 60 | sed 's/^/  | /'; }

# lab_verdict GOOD? DESCRIPTION EXPECTED COMMAND...
lab_verdict() {
  if (($1)); then
    lab_good "$2"
  else
    lab_bad "$2" "command:  $(printf '%q ' "${@:4}")" "expected: status $3" "got:      status $status" \
      "output:" "$(lab_text "$output")"
  fi
}

ok() {
  lab_try "${@:2}"
  lab_verdict "$((status == 0))" "$1" 0 "${@:2}"
}

# fails DESCRIPTION STATUS COMMAND...; the status "any" means any but 0
fails() {
  lab_try "${@:3}"
  if [[ $2 == any ]]; then
    lab_verdict "$((status != 0))" "$1" "other than 0" "${@:3}"
  else
    lab_verdict "$((status == $2))" "$1" "$2" "${@:3}"
  fi
}

eq() {
  local difference
  if [[ $2 == "$3" ]]; then
    lab_good "$1"
  elif [[ $2$3 == *$'\n'* ]]; then
    difference=$(diff <(printf '%s\n' "$2") <(printf '%s\n' "$3") | tail -n +2) || true
    lab_bad "$1" "expected (<) and got (>) differ:" "$(lab_text "$difference")"
  else
    lab_bad "$1" "expected: $2" "got:      $3"
  fi
}

contains() {
  if [[ $3 == *"$2"* ]]; then
    lab_good "$1"
  else
    lab_bad "$1" "expected to contain: $2" "got:" "$(lab_text "$3")"
  fi
}

lacks() {
  if [[ $3 != *"$2"* ]]; then
    lab_good "$1"
  else
    lab_bad "$1" "expected not to contain: $2" "got:" "$(lab_text "$3")"
  fi
}

# survived WHAT OUTCOME: ends a case, and reports it if all checks since the previous case succeeded. The table for
# users is made from these lines as the scenarios contain them: each on its own line, both arguments in double quotes.
survived() {
  if ((lab_failed == lab_cases_failed)); then
    echo "  SURVIVED $1: $2"
  fi
  lab_cases_failed=$lab_failed
}

# lab_join_hints FILE: appends the hint of each error, which has a line of its own, to the error.
lab_join_hints() { sed -i -z 's/\n  hint: /; hint: /g' "$1"; }

# The end of every scenario.
lab_done() {
  if [[ $lab_catalog ]]; then
    contains "the scenario's catalog is in Consul" zsync/generation/ "$(lab_consul_ask lab-consul 'kv/zsync/?keys')"
  fi
  local tenths=$(((${EPOCHREALTIME//[.,]/} - lab_start) / 100000))
  lab_finished=1
  echo "  $lab_checks checks, $lab_failed failed, $((tenths / 10)).$((tenths % 10)) s"
  ((lab_checks > 0 && lab_failed == 0)) || exit 1
}

# --- The end.

lab_cleanup() {
  local file ns pid where real problems=0
  {
    for file in "$lab_state"/procs/*; do
      [[ ! -e $file ]] || ! lab_running "${file##*/}" || kill -KILL "$(lab_pid "${file##*/}")" || true
    done
    # Then their children: every process in a namespace made here belongs to the scenario.
    for ns in $(lab_namespaces); do
      for pid in $(ip netns pids "$ns"); do
        kill -KILL "$pid" || true
      done
    done
    sleep 0.05
  } 2>/dev/null
  awk -v below="$LAB_TMP/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r where; do
    umount "$where" 2>/dev/null || true
  done
  for real in $(lab_pools); do
    # A process that was just killed may keep the pool busy for a moment.
    lab_until 5 zpool destroy -f "$real" 2>/dev/null || {
      echo "lab: cannot destroy pool $real"
      problems=1
    }
  done
  for ns in $(lab_namespaces); do
    ip netns del "$ns" 2>/dev/null || true
    rm -rf "/etc/netns/$ns"
  done
  rm -rf "$LAB_TMP/pools" "$lab_state"
  return "$problems"
}

# shellcheck disable=SC2317 # a trap calls it
lab_exit() {
  local status=$1 log
  trap - ERR
  set +e
  if [[ ! $lab_finished ]] && ((status == 0)); then
    echo "lab: the scenario ended without lab_done"
    status=1
  fi
  if ((status)); then
    for log in "$LAB_TMP"/*.log; do
      [[ -e $log ]] || continue
      echo "  -- the end of ${log##*/}:"
      tail -n "${LAB_LOG_LINES:-30}" "$log" | sed 's/^/  | /'
      mkdir -p "$LAB_OUT/${LAB_TMP##*/}"
      cp "$log"* "$LAB_OUT/${LAB_TMP##*/}/"
    done
  fi
  lab_cleanup || status=1
  exit "$status"
}

# shellcheck disable=SC2317 # a trap calls it
lab_error() {
  # A subshell reports nothing: its caller handles the failure.
  ((BASH_SUBSHELL)) || echo "lab: line $2 failed with status $1: $3"
}

if [[ $- == *i* ]]; then
  echo "lab_host, lab_pool, on, lab_daemon and others are defined; lab_cleanup removes what they made"
  PS1='lab:\w# '
else
  set -Eeuo pipefail
  trap 'lab_exit $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'lab_error $? $LINENO "$BASH_COMMAND"' ERR
  if [[ ${LAB_CATALOG-} ]]; then
    lab_on_consul >"$LAB_TMP/scenario"
    sed -i '/^source "$LAB_DIR\/lib.sh"$/d' "$LAB_TMP/scenario"
    lab_catalog=$LAB_CATALOG
    # shellcheck disable=SC1091 # made just now
    source "$LAB_TMP/scenario"
    exit
  fi
fi
