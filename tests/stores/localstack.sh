# shellcheck shell=bash
# shellcheck disable=SC2154 # $bed is that of tests/run
# The S3 of LocalStack for tests/run, in a Python environment of its own. Later versions of three libraries do not go with it.

localstack_packages=('localstack-core[base-runtime]==4.8.1' 'cbor2==5.6.5' 'pyopenssl==24.2.1')

localstack_answers() { curl --silent --fail --output /dev/null "$1/_localstack/health"; }

localstack_start() {
    local dir=$1 venv=$bed/localstack port url
    if [ "$(cat "$venv/packages" 2>/dev/null)" != "${localstack_packages[*]}" ]; then
        say "installing ${localstack_packages[*]}"
        { python3 -m venv "$venv" && "$venv/bin/python" -m pip install --quiet "${localstack_packages[@]}"; } >&2 || {
            say "these could not be installed with pip in $venv: ${localstack_packages[*]}"
            exit 69
        }
        echo "${localstack_packages[*]}" >"$venv/packages"
    fi
    say 'starting LocalStack'
    mkdir -p "$dir/home" "$dir/data"
    port=$(free_port)
    url=http://127.0.0.1:$port
    env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY -u AWS_SESSION_TOKEN HOME="$dir/home" LOCALSTACK_VOLUME_DIR="$dir/data" \
        TMPDIR="$dir/data" GATEWAY_LISTEN="127.0.0.1:$port" GATEWAY_SERVER=hypercorn DNS_ADDRESS=0 SERVICES=s3 DISABLE_EVENTS=1 \
        SKIP_SSL_CERT_DOWNLOAD=1 "$venv/bin/python" -m localstack.runtime.main >"$dir/log" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    if ! wait_for 60 "$(cat "$dir/pid")" localstack_answers "$url"; then
        say "LocalStack did not start; the end of $dir/log:"
        tail -n 20 "$dir/log" >&2
        return 1
    fi
    export CONSIGN_TEST_LOCALSTACK_URL=$url
}

localstack_stop() { end_pid "$1/pid"; }
