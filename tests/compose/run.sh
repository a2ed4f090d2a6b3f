#!/usr/bin/env bash
# Builds the image, brings docker-compose.yml up, and checks that a session survives a restart, a killed service, a
# killed container and a replaced one. The script removes what it made, except for the engine's build cache.
#
# If no Docker engine answers, the script starts the engine of $CONTAINER_ENGINE (a script: up, env, down) and stops it
# again. Without such an engine it prints NOT RUN and exits with 77.
set -euo pipefail
cd "$(dirname "$0")/../.."

engine=${CONTAINER_ENGINE:-../shared/tools/container-engine.sh}
engine_started=
export COMPOSE_PROJECT_NAME=onward-test-$$
image=$COMPOSE_PROJECT_NAME
scratch=$(mktemp -d)

say() { echo "compose: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

clean_up() {
  local status=$?
  trap - EXIT
  if [ -n "${COMPOSE_FILE:-}" ]; then
    [ $status = 0 ] || docker compose logs --no-color --tail 50 || true
    docker compose down --volumes --timeout 5 >"$scratch/log" 2>&1 || cat "$scratch/log"
    docker image rm --force "$image" "$image-builder" >"$scratch/log" 2>&1 || cat "$scratch/log"
  fi
  [ -z "$engine_started" ] || bash "$engine" down
  rm -rf "$scratch"
  [ $status != 0 ] || say "$shown"
  exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM

quietly() { "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log"; fail "$*"; }; }

an_engine_answers() { docker info >"$scratch/log" 2>&1 && docker compose version >"$scratch/log" 2>&1; }

find_engine() {
  if an_engine_answers; then return; fi
  if [ ! -f "$engine" ]; then
    say "NOT RUN: no container engine: docker info or docker compose does not answer, and $engine is not there"
    exit 77
  fi
  eval "$(bash "$engine" env)"
  if an_engine_answers; then return; fi
  engine_started=yes
  if ! bash "$engine" up; then
    say "NOT RUN: no container engine answers, and $engine could not start one"
    exit 77
  fi
  hash -r  # the engine may have brought its own docker
  an_engine_answers || fail "$engine is up and does not answer"
}

megabytes() { echo $(($(docker image inspect --format '{{.Size}}' "$1") / 1000000)); }

inside() { docker run --rm --network none "$@"; }

builder() {  # the base image, with Python's headers where it came without, as Debian's own Python does
  local base=python:3.11-slim header='import os, sysconfig as s; print(os.path.exists(s.get_path("include") + "/Python.h"))'
  if [ "$(inside "$base" python -c "$header")" = True ]; then echo "$base"; return; fi
  printf 'FROM %s\nRUN apt-get update -qq && apt-get install --yes -qq --no-install-recommends python3-dev\n' "$base" |
    docker build --quiet --network host --tag "$image-builder" - >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; return 1; }
  echo "$image-builder"
}

check_image() {
  if command -v hadolint >/dev/null; then hadolint Dockerfile; say "hadolint: clean"; fi
  DOCKER_BUILDKIT=1 quietly docker build --network host --build-arg "BUILDER=$(builder)" --tag "$image" .
  local size uid leftovers
  size=$(megabytes "$image")
  uid=$(inside "$image" id -u)
  [ "$uid" != 0 ] || fail "the image runs as root"
  ! inside "$image" python -c 'import torch' 2>"$scratch/log" || fail "torch is in the image"
  grep -q "No module named 'torch'" "$scratch/log" || { cat "$scratch/log"; fail "import torch failed otherwise"; }
  inside "$image" python -c 'import gunicorn_h1c' || fail "the fast path's parser is not in the image"
  leftovers=$(inside --user 0 "$image" find / -xdev '(' -path /src -o -path '/root/.cache/*' -o -path '/tmp/*' ')')
  [ -z "$leftovers" ] || fail "left over in the image: $leftovers"
  say "image: $size MB; user $uid, no torch, no caches"
}

bring_up() {  # waits for the healthcheck
  quietly docker compose up --detach --no-build --wait --wait-timeout 120 "$@"
}

container() { docker compose ps --all --quiet onward; }

state() { docker inspect --format "$1" "$(container)"; }

check() {  # runs in a network namespace from which the service can be reached
  local url=http://127.0.0.1:8000 namespace=()
  if [ "$COMPOSE_FILE" = "$published" ]; then
    url=http://$(docker compose port onward 8000)
  else
    namespace=(nsenter --net --target "$(state '{{.State.Pid}}')")
  fi
  "${namespace[@]}" python3 tests/compose/check.py "$url" "$scratch/answers" "$@" >"$scratch/summary" || fail "check.py $*"
}

check_hardening() {
  docker compose --file docker-compose.yml config --format json >"$scratch/config"
  python3 - "$scratch/config" <<'P' || fail "docker-compose.yml opens a port to other machines"
import json, sys
ports = [port for service in json.load(open(sys.argv[1]))["services"].values() for port in service["ports"]]
sys.exit(not ports or any(port.get("host_ip") != "127.0.0.1" for port in ports))
P
  docker compose exec -T onward cat /proc/1/status >"$scratch/status"
  grep -qP 'CapBnd:\t0+$' "$scratch/status" || fail "it has capabilities"
  grep -qP 'NoNewPrivs:\t1$' "$scratch/status" || fail "it may gain privileges"
  ! docker compose exec -T --user 0 onward touch /opt/onward/file 2>"$scratch/log" || fail "its root file system is writable"
  grep -q 'Read-only file system' "$scratch/log" || { cat "$scratch/log"; fail "touch failed otherwise"; }
  say "hardened: read-only root, no capabilities, no new privileges; ports on 127.0.0.1 only"
}

restart() { quietly docker compose restart; }

kill_service() {  # kills the process under init; the restart policy must restart the container
  # shellcheck disable=SC2016  # the container's shell reads it
  docker compose exec -T onward sh -c 'kill -KILL $(cat /proc/1/task/1/children)' >"$scratch/log" 2>&1 || true  # the shell dies with the service
  local deadline=$((SECONDS + 60))
  until [ "$(state '{{.RestartCount}} {{.State.Health.Status}}')" = "1 healthy" ]; do
    [ $SECONDS -lt $deadline ] || fail "the restart policy did not bring the service back"
    sleep 0.2
  done
}

kill_container() { quietly docker compose kill --signal KILL; }

replace() { bring_up --force-recreate; }

survives() {
  local before after
  before=$(state '{{.State.StartedAt}}')
  "$1"
  bring_up
  after=$(state '{{.State.StartedAt}}')
  [ "$after" != "$before" ] || fail "$1 did not interrupt the service"
  check resume
  say "after $1: $(cat "$scratch/summary")"
}

stop() {
  quietly docker compose stop
  local code
  code=$(state '{{.State.ExitCode}}')
  [ "$code" = 0 ] || fail "it did not stop by itself: exit code $code"
}

published=docker-compose.yml:tests/compose/published.yml
loopback=docker-compose.yml:tests/compose/loopback.yml

find_engine
if docker network inspect bridge >"$scratch/log" 2>&1; then
  export COMPOSE_FILE=$published
  reached="through the published port; nothing was left out"
else
  export COMPOSE_FILE=$loopback
  reached="inside the container's network; NOT shown: published ports and a bridge network, which this engine has not"
fi
say "engine: $(docker version --format '{{.Server.Version}}'), compose $(docker compose version --short)"

check_image
bring_up
check_hardening
check begin
say "three requests: $(cat "$scratch/summary")"
survives restart
survives kill_service
survives kill_container
survives replace
check compare
say "a session never interrupted: $(cat "$scratch/summary")"
stop
shown="PASSED: image, hardening, three requests, four interruptions, a clean stop; reached $reached"
