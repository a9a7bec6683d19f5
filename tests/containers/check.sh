#!/usr/bin/env bash
# check.sh [STEP ...]: builds the image, brings the compose stack up and runs journey.py against it; `make containers`.
# With a container engine it uses docker compose. Without one, CONTAINER_CHECK names a command that gets the project's
# folder, the compose file and a command; it runs that command where the stack can be reached, with COMPOSE set.
set -euo pipefail
cd "$(dirname "$0")/../.."
export REPLICAS=3
journey="cd $PWD && .venv/bin/python -m tests.containers.journey $*"

if [[ -n ${CONTAINER_CHECK:-} ]]; then
    exec $CONTAINER_CHECK "$PWD" compose.yaml "$journey"
fi
if ! docker info > /dev/null 2>&1; then
    echo "no container engine here: start one, or name a stand-in in CONTAINER_CHECK" >&2
    exit 2
fi
export HTTP_PORT=${HTTP_PORT:-18000} HTTPS_PORT=${HTTPS_PORT:-18443} OPERATORS_PORT=${OPERATORS_PORT:-18001}
export COMPOSE="docker compose --project-name mesh-check --file $PWD/compose.yaml"
trap '$COMPOSE down --volumes --timeout 5' EXIT
$COMPOSE up --detach --build --wait --wait-timeout 150
bash -c "$journey"
