#!/usr/bin/env bash
# Checks what is in deploy/, the image's and Compose's files: each with the tool that will read it, and each name of a
# metric against a running bridge. Called by tests/run.sh; on its own it takes target/debug/topic-bridge, or
# BRIDGE_TEST_PROGRAM=PATH.
#
# The tools come from Debian's packages (unpacked, not installed: it takes no root), the Python package index and Go
# modules, into target/deploy. What cannot be had is named, and not checked.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${BRIDGE_TEST_PROGRAM:-target/debug/topic-bridge}")
tools=$PWD/target/deploy
mkdir -p "$tools/bin"
exec 9>"$tools/lock"
flock 9 # two runs must not install at once
work=$(mktemp -d)
started=()
clean() {
    [ "${#started[@]}" = 0 ] || kill "${started[@]}" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT

failed=0
checked=0
skipped=0
say() { echo "tests/deploy.sh: $*" >&2; }
skip() {
    skipped=$((skipped + 1))
    say "NOT CHECKED: $*"
}
has() { command -v "$1" >/dev/null; }
# check WHAT COMMAND…: what the command says is shown only where it fails.
check() {
    local what=$1
    shift
    if "$@" >"$work/output" 2>&1; then
        checked=$((checked + 1))
    else
        failed=$((failed + 1))
        say "FAILED: $what"
        cat "$work/output" >&2
    fi
}

# debian PACKAGE PATH: prints where a program of the distribution is, installed or unpacked here.
debian() {
    local name=${2##*/}
    if has "$name"; then command -v "$name" && return; fi
    if [ ! -x "$tools/$1/$2" ]; then
        has apt-get && has dpkg-deb || return 1
        say "fetching Debian's package $1"
        rm -rf "${tools:?}/$1" && mkdir -p "$tools/$1/partial"
        (
            cd "$tools/$1/partial"
            apt-get -qq download "$1" || { apt-get -qq update && apt-get -qq download "$1"; }
        ) >/dev/null 2>&1 || return 1
        dpkg-deb -x "$tools/$1"/partial/*.deb "$tools/$1" || return 1
        rm -r "$tools/$1/partial"
    fi
    echo "$tools/$1/$2"
}

python_tools() {
    cmp -s tests/deploy/requirements.txt "$tools/python/requirements.txt" && return
    say "installing the Python packages of tests/deploy/requirements.txt"
    python3 -m venv --clear "$tools/python" &&
        "$tools/python/bin/python" -m pip install -q -r tests/deploy/requirements.txt >&2 &&
        cp tests/deploy/requirements.txt "$tools/python"
}

# go_program NAME MODULE@VERSION
go_program() {
    local name=$1-${2##*@}
    [ -x "$tools/bin/$name" ] && return
    has go || return 1
    say "building $2"
    GOFLAGS='' GOBIN=$tools/new go install "$2" >&2 || return 1
    mv "$tools/new"/* "$tools/bin/$name"
}

# The bridge, on free ports, with the sample for trying it out.
start_bridge() {
    "$program" --config config/embedded.toml --set ingress.listen=127.0.0.1:0 --set admin.listen=127.0.0.1:0 \
        --set "outbox.path=$work/outbox.db" --set log.format=json 2>"$work/log" &
    started+=($!)
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        admin=$(sed -n 's/.*"private listener ready".*"address":"\([^"]*\)".*/\1/p' "$work/log")
        [ -n "$admin" ] || admin=$(sed -n 's/.*"address":"\([^"]*\)".*"private listener ready".*/\1/p' "$work/log")
        [ -n "$admin" ] && return
        sleep 0.1
    done
    say "the bridge does not start:"
    cat "$work/log" >&2
    exit 1
}

[ -x "$program" ] || {
    say "there is no $program: run cargo build"
    exit 1
}
python_tools || skip "what takes Python packages: is the Python package index reachable?"

# Prometheus: the rules, their tests, and each expression of the dashboard.
promtool=$(debian prometheus usr/bin/promtool) || promtool=
if [ "$promtool" ]; then
    check "deploy/prometheus/prometheus.yml, rules.yml" "$promtool" check config deploy/prometheus/prometheus.yml
    check "deploy/prometheus/tests.yml" "$promtool" test rules deploy/prometheus/tests.yml
    python3 tests/deploy/names.py expressions >"$work/dashboard.yml"
    check "the expressions of deploy/grafana/dashboard.json" "$promtool" check rules "$work/dashboard.yml"
else
    skip "deploy/prometheus with promtool: Debian's package prometheus cannot be had"
fi
start_bridge
if [ "$promtool" ]; then
    curl -sS "http://$admin/metrics" >"$work/metrics"
    check "/metrics, as promtool likes it" "$promtool" check metrics <"$work/metrics"
fi
check "the names of metrics and labels in deploy/" python3 tests/deploy/names.py live "http://$admin/metrics"
check "each alert in docs/alerts.md" python3 tests/deploy/names.py alerts
deploy/grafana/make.py >"$work/dashboard.json"
check "deploy/grafana/dashboard.json is what make.py makes" cmp "$work/dashboard.json" deploy/grafana/dashboard.json

# The configurations: with a token and a folder that are there.
printf secret >"$work/token"
for file in deploy/*/bridge.toml deploy/*/*/bridge.toml; do
    sed -e "s#^token_files = .*#token_files = [\"$work/token\"]#" -e "s#^path = .*#path = \"$work/checked.db\"#" \
        "$file" >"$work/bridge.toml"
    check "$file" "$program" check --config "$work/bridge.toml"
done

# Kubernetes.
kustomize=()
if has kubectl; then
    kustomize=(kubectl kustomize)
elif go_program kustomize sigs.k8s.io/kustomize/kustomize/v5@v5.5.0; then
    kustomize=("$tools/bin/kustomize-v5.5.0" build)
fi
if [ "${#kustomize[@]}" != 0 ] && [ -x "$tools/python/bin/kubernetes-validate" ]; then
    for base in statefulset sidecar; do
        check "deploy/kubernetes/$base with kustomize" "${kustomize[@]}" "deploy/kubernetes/$base" -o "$work/$base.yaml"
        for version in 1.32 1.37; do
            check "deploy/kubernetes/$base against the schemas of Kubernetes $version" \
                "$tools/python/bin/kubernetes-validate" --strict --quiet -k "$version" "$work/$base.yaml"
        done
        check "deploy/kubernetes/$base" "$tools/python/bin/python" tests/deploy/kubernetes.py "$work/$base.yaml"
    done
else
    skip "deploy/kubernetes: takes kubectl or Go, and the Python package kubernetes-validate"
fi

# systemd.
if has systemd-analyze; then
    sed "s#^ExecStart=[^ ]*#ExecStart=$program#" deploy/systemd/topic-bridge.service >"$work/topic-bridge.service"
    check "deploy/systemd/topic-bridge.service" \
        systemd-analyze verify --man=no --recursive-errors=no "$work/topic-bridge.service"
    [ ! -s "$work/output" ] || check "systemd warns of deploy/systemd/topic-bridge.service" false
    check "the exposure of deploy/systemd/topic-bridge.service is at most 1.5" \
        systemd-analyze security --no-pager --offline=true --threshold=15 "$work/topic-bridge.service"
else
    skip "deploy/systemd: there is no systemd-analyze"
fi

# Proxies.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/tls.key" -out "$work/tls.crt" \
    -days 2 -subj /CN=chat.example.com 2>/dev/null
if nginx=$(PATH=$PATH:/usr/sbin debian nginx usr/sbin/nginx); then
    {
        echo "pid $work/nginx.pid; error_log stderr; events {}"
        echo "http { access_log off;"
        for kind in client_body proxy fastcgi uwsgi scgi; do echo "${kind}_temp_path $work/$kind;"; done
        sed "s#/etc/nginx/tls#$work/tls#" deploy/proxies/nginx.conf
        echo "}"
    } >"$work/nginx.conf"
    check deploy/proxies/nginx.conf "$nginx" -t -q -c "$work/nginx.conf" -p "$work"
else
    skip "deploy/proxies/nginx.conf: Debian's package nginx cannot be had"
fi
if caddy=$(debian caddy usr/bin/caddy); then
    check deploy/proxies/Caddyfile env HOME="$work" "$caddy" validate --adapter caddyfile \
        --config deploy/proxies/Caddyfile
else
    skip "deploy/proxies/Caddyfile: Debian's package caddy cannot be had"
fi
if has go && (cd tests/deploy/envoy && GOFLAGS='' go build -o "$tools/bin/envoy-check" .) >"$work/output" 2>&1; then
    check deploy/proxies/envoy.yaml "$tools/bin/envoy-check" deploy/proxies/envoy.yaml
else
    skip "deploy/proxies/envoy.yaml: takes Go and its modules"
fi

# The image and Compose.
if [ -x "$tools/python/bin/hadolint" ]; then
    check Dockerfile "$tools/python/bin/hadolint" Dockerfile
fi
if docker compose version >/dev/null 2>&1; then
    check docker-compose.yml docker compose --file docker-compose.yml config --quiet
elif go_program cmd github.com/compose-spec/compose-go/v2/cmd@v2.16.2; then
    check docker-compose.yml "$tools/bin/cmd-v2.16.2" docker-compose.yml
else
    skip "docker-compose.yml: takes Docker Compose or Go"
fi
check "docker-compose.yml names the brokers of tests/brokers/versions" python3 tests/deploy/names.py images
if shellcheck=$(debian shellcheck usr/bin/shellcheck); then
    check "the scripts" "$shellcheck" --severity=warning tests/*.sh .ci/run
else
    skip "the scripts with shellcheck: Debian's package shellcheck cannot be had"
fi

say "$checked checks passed, $failed failed, $skipped could not be made"
[ "$failed" = 0 ]
