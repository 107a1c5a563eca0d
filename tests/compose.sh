#!/usr/bin/env bash
# Plays the Compose stack as its users do for their integration tests: up, a callback to each bridge, each event read
# from its broker, a broker stopped and started, a bridge killed, down. Called by tests/run.sh; takes a Docker engine
# with Compose, and is reported as not run elsewhere.
#
# It takes the ports of docker-compose.yml, under a project of its own: a stack of yours that is up keeps its data, but
# must be down meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { echo "tests/compose.sh: $*" >&2; }

if ! { docker info && docker compose version; } >/dev/null 2>&1; then
    say "NOT RUN: no engine (docker info and docker compose must work)"
    exit 0
fi
export COMPOSE_PROJECT_NAME=topic-bridge-test COMPOSE_PROFILES=kafka,rabbitmq,nats,embedded
compose() { docker compose --progress quiet "$@"; }
finish() {
    local status=$?
    if [ "$status" != 0 ]; then
        say "FAILED: the stack's last lines are"
        compose logs --tail 20 >&2 || true
    fi
    compose down --volumes --timeout 30 >&2 || true
    exit "$status"
}
trap finish EXIT
fail() { say "$*" && exit 1; }

# The bridges' ports: for callbacks, and private.
declare -A callbacks=([embedded]=8080 [kafka]=8081 [rabbitmq]=8082 [nats]=8083)
declare -A private=([embedded]=9090 [kafka]=9191 [rabbitmq]=9192 [nats]=9193)
readonly url_of_a_callback='?SdkAppid=1400000000&CallbackCommand=Group.CallbackAfterCreateTopic&contenttype=json'

# call SINK TOPIC
call() {
    local answer
    answer=$(curl -sS --max-time 5 "http://127.0.0.1:${callbacks[$1]}/$url_of_a_callback" --data-binary '{
        "CallbackCommand": "Group.CallbackAfterCreateTopic", "GroupId": "@TGS#group", "TopicId": "'"$2"'",
        "Operator_Account": "root", "Owner_Account": "root", "Type": "Community", "Name": "Topic"}')
    [[ $answer == *'"ErrorCode":0'* ]] || fail "the bridge for $1 answered: $answer"
}

# read_from SINK COUNT: the topics of so many events, as its broker has them, each once.
read_from() {
    timeout 30 docker compose exec -T "bridge-$1" topic-bridge tail --from-start --count "$2" 2>/dev/null |
        sed -n 's/.*"subject":"\([^"]*\)".*/\1/p' | sort -u
}

# expect SINK TOPIC…: the broker has these, and no other. An event may be there twice: then more are to be read.
expect() {
    local sink=$1 wanted found more
    shift
    wanted=$(printf '%s\n' "$@" | sort)
    for more in 0 1 2 3; do
        found=$(read_from "$sink" $(($# + more)) || true)
        [ "$found" != "$wanted" ] || return 0
    done
    fail "$sink has: ${found//$'\n'/ }; expected: $*"
}

# until_ready SINK STATUS
until_ready() {
    local tries
    for ((tries = 0; tries < 240; tries++)); do
        if curl -s --max-time 2 "http://127.0.0.1:${private[$1]}/readyz" | grep -q "\"status\":\"$2\""; then return; fi
        sleep 0.5
    done
    fail "the bridge for $1 does not become $2"
}

say "up"
compose up --build --wait --wait-timeout 600 >&2
for sink in embedded kafka rabbitmq nats; do
    call "$sink" first
    expect "$sink" first
done

for sink in kafka rabbitmq nats; do
    say "$sink stopped and started"
    compose stop "$sink" >&2
    call "$sink" during-the-outage
    until_ready "$sink" degraded
    compose start "$sink" >&2
    until_ready "$sink" ready
    expect "$sink" first during-the-outage
done

for sink in embedded kafka rabbitmq nats; do
    say "the bridge for $sink killed"
    call "$sink" before-the-kill
    compose kill --signal KILL "bridge-$sink" >&2
    compose up --no-build --wait "bridge-$sink" >&2
    call "$sink" after-the-kill
    all=(first before-the-kill after-the-kill)
    [ "$sink" = embedded ] || all+=(during-the-outage)
    expect "$sink" "${all[@]}"
done

say "down"
compose stop >&2
for sink in embedded kafka rabbitmq nats; do
    status=$(docker inspect --format '{{.State.ExitCode}}' "$(docker compose ps --all --quiet "bridge-$sink")")
    [ "$status" = 0 ] || fail "the bridge for $sink ended with $status"
done
say "passed: four bridges, three brokers, an outage and a kill of each"
