# What the scripts of this folder share: their command line. Each starts one server of another project with a
# configuration of ours, as a lesson's matrix names it:
#
#     experiments/contenders/nginx reuseport --workers 2 --listen 127.0.0.1:8080
#
# Its own options stand in `own`. Files that the server needs go to `folder`, which the lab removes; started by hand it
# is /tmp/acceptlab-contender-PORT, and stays. All of them answer with text/plain of 64 bytes (with a pid of five
# digits) that begins with the worker and its pid, where the server knows them. Its worker has the last three digits of
# the pid for a number, because most servers give it no other. No access log, connections kept for 75 s and for any
# number of requests, a backlog of 4096; for the rest what the project recommends, or the script says why not.
set -euo pipefail
PATH=/opt/acceptlab-contenders/bin:$PATH:/usr/sbin
here=$(cd "$(dirname "$0")" && pwd)
workers=1 listen=127.0.0.1:8080 own=()
while [ $# -gt 0 ]; do
  case $1 in
    --workers) workers=${2:-} && shift $(($# > 1 ? 2 : 1)) ;;
    --listen) listen=${2:-} && shift $(($# > 1 ? 2 : 1)) ;;
    --version) version; exit ;;
    *) own+=("$1") && shift ;;
  esac
done
if ! [[ $workers =~ ^[1-9][0-9]*$ && $listen =~ ^[^:]+:[0-9]+$ ]]; then
  echo "write --workers N --listen ADDR:PORT" >&2
  exit 2
fi
host=${listen%:*} port=${listen##*:}
folder=${CONTENDER_FOLDER:-/tmp/acceptlab-contender-$port}
mkdir -p -m 755 "$folder"
if ! [ -O "$folder" ] || [ "${#folder}" -gt 90 ]; then
  echo "$folder: the folder must be yours, and its name at most 90 bytes long (a socket is made there)" >&2
  exit 2
fi
# Behind `handled by worker 345, pid 12345` and the end of its line.
readonly DOTS=..............................
