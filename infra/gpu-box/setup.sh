#!/usr/bin/env bash
# A bare machine with NVIDIA GPUs becomes a worker: installs this checkout, and a systemd service that takes runs from the
# gpu queue of a Prefect server. Run it again after `git pull`; runs under way end first.
#   sudo infra/gpu-box/setup.sh --api https://prefect.example/api --store s3://bucket/saeflow
#   infra/gpu-box/setup.sh --dry-run ...     prints what it would do
set -euo pipefail

api='' store='' queue=gpu user=saeflow dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --api) api=${2:?--api needs an address}; shift 2 ;;
    --store) store=${2:?--store needs a folder or s3://bucket/prefix}; shift 2 ;;
    --queue) queue=${2:?--queue needs gpu or cpu}; shift 2 ;;
    --user) user=${2:?--user needs a name}; shift 2 ;;
    --dry-run) dry=yes; shift ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "$1 is not known; see --help" >&2; exit 2 ;;
  esac
done
[ -n "$api" ] || { echo "--api is missing: the address of the Prefect server, which ends in /api" >&2; exit 2; }
[ -n "$store" ] || { echo "--store is missing: where artifacts live, s3://bucket/prefix or a shared folder" >&2; exit 2; }
case $api in http://*/api | https://*/api) ;; *) echo "--api is $api, which does not end in /api" >&2; exit 2 ;; esac
source=$(cd -P "$(dirname "$0")/../.." && pwd)
here=/opt/saeflow settings=/etc/saeflow/worker.env scratch=/var/lib/saeflow

run() { if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }
write() { if [ -n "$dry" ]; then echo "write $1 (mode $2):"; sed 's/^/    /'; else install -m "$2" /dev/stdin "$1"; fi; }

if [ -z "$dry" ]; then
  [ "$(id -u)" = 0 ] || { echo "must be run as root: it makes a user and a service" >&2; exit 1; }
  [ "$queue" = cpu ] || nvidia-smi -L || { echo "nvidia-smi finds no GPU; install NVIDIA's driver first" >&2; exit 1; }
  command -v rsync >/dev/null || { echo "rsync is needed (apt-get install rsync)" >&2; exit 1; }
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
fi

id -u "$user" >/dev/null 2>&1 || run useradd --system --create-home --home-dir "$scratch" --shell /usr/sbin/nologin "$user"
run install -d -o "$user" -g "$user" "$scratch" "$scratch/scratch" "$here"
run install -d -m 700 /etc/saeflow
run rsync -a --delete --exclude .venv --exclude '.venv-*' "$source/" "$here/"
run python3 "$here/install.py" "$here/.venv" "$here/constraints.txt" -e "${here}[cluster]"
if [ ! -e "$settings" ]; then  # a second run keeps the keys
  write "$settings" 600 <<ENV
PREFECT_API_URL=$api
# PREFECT_API_AUTH_STRING=
SAEFLOW_STORE=$store
SAEFLOW_SCRATCH=$scratch/scratch
SAEFLOW_CACHE=$scratch/cache
# AWS_ACCESS_KEY_ID=
# AWS_SECRET_ACCESS_KEY=
# ANTHROPIC_API_KEY=
# HF_TOKEN=
PREFECT_WORKER_WEBSERVER_HOST=127.0.0.1
ENV
fi
write /etc/systemd/system/saeflow-worker.service 644 <<UNIT
[Unit]
Description=saeflow: Prefect worker of the queue $queue
Wants=network-online.target
After=network-online.target

[Service]
User=$user
EnvironmentFile=$settings
WorkingDirectory=$scratch
ExecStart=$here/.venv/bin/prefect worker start --pool saeflow --work-queue $queue --limit 1
# The worker is asked first, and its run puts unfinished work away; what is left after that is killed.
KillMode=mixed
TimeoutStopSec=90
Restart=always
RestartSec=10
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ReadWritePaths=$scratch
LimitNOFILE=1048576
LimitMEMLOCK=infinity

[Install]
WantedBy=multi-user.target
UNIT
run systemctl daemon-reload
run systemctl enable saeflow-worker.service
run systemctl restart saeflow-worker.service
echo "keys: $settings     logs: journalctl -u saeflow-worker -f"
