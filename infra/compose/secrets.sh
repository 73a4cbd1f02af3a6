#!/usr/bin/env bash
# Makes the secrets of the compose file, once: passwords, tokens, a first login and a self-signed certificate, in
# infra/compose/secrets/ (never committed). What is there already stays.
#   infra/compose/secrets.sh [LOGIN] [HOST]        default: admin localhost
set -euo pipefail
umask 077
login=${1:-admin} host=${2:-localhost}
folder=$(cd "$(dirname "$0")" && pwd)/secrets
if [ -e "$folder/prefect.env" ]; then
  echo "$folder is there already; remove it to begin anew (the data base keeps its old password)." >&2
  exit 1
fi
word() { openssl rand -hex 24; }
mkdir -p "$folder/tls"
postgres=$(word) redis=$(word) s3_id=$(word) s3_key=$(word) ray=$(word) api="saeflow:$(word)" password=$(word)

printf '%s' "$postgres" > "$folder/postgres_password"
printf '%s' "$ray" > "$folder/ray_token"
printf 'user default on >%s ~* &* +@all\n' "$redis" > "$folder/redis_acl"
cat > "$folder/s3_identities.json" <<JSON
{"identities": [{"name": "saeflow", "credentials": [{"accessKey": "$s3_id", "secretKey": "$s3_key"}],
 "actions": ["Read:saeflow", "Write:saeflow", "List:saeflow", "Tagging:saeflow", "Admin:saeflow"]}]}
JSON
cat > "$folder/prefect.env" <<ENV
PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://prefect:$postgres@postgres:5432/prefect
PREFECT_REDIS_MESSAGING_URL=redis://default:$redis@redis:6379/0
PREFECT_SERVER_DOCKET_URL=redis://default:$redis@redis:6379/1
PREFECT_SERVER_API_AUTH_STRING=$api
PREFECT_API_AUTH_STRING=$api
ENV
cat > "$folder/worker.env" <<ENV
PREFECT_API_AUTH_STRING=$api
AWS_ACCESS_KEY_ID=$s3_id
AWS_SECRET_ACCESS_KEY=$s3_key
# ANTHROPIC_API_KEY=
# HF_TOKEN=
# WANDB_API_KEY=
# SAEFLOW_NOTIFY_URL=
ENV
cat > "$folder/proxy.env" <<ENV
TLS_FOLDER=/etc/nginx/tls
LOGINS=/etc/nginx/logins
PREFECT_AUTH_BASE64=$(printf '%s' "$api" | base64 -w 0)
RAY_TOKEN=$ray
ENV
printf '%s:%s\n' "$login" "$(openssl passwd -apr1 "$password")" > "$folder/logins"
openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=$host" -addext "subjectAltName=DNS:$host" \
  -keyout "$folder/tls/server.key" -out "$folder/tls/server.crt" 2>/dev/null
# Containers read these as users of their own; on this machine the folder itself lets nobody else in.
chmod 755 "$folder/tls"
chmod 644 "$folder"/{postgres_password,ray_token,redis_acl,s3_identities.json,logins}
echo "login $login, password $password: it is kept nowhere else. More people: htpasswd $folder/logins NAME"
echo "keys for Claude, the hub, wandb and notices: $folder/worker.env"
