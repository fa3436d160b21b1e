# shellcheck shell=bash
# shellcheck disable=SC2154 # $bed is that of tests/run
# Garage for tests/run: one node on loopback. It is built from crates.io once, which takes 15 minutes on two cores.

garage_version=2.5.0
garage_program=$bed/garage/bin/garage
# A key id is GK and 24 hexadecimal digits, a secret is 64 of them.
declare -gA garage_ids=(
    [admin]=GK0123456789abcdef00000001 [writer]=GK0123456789abcdef00000002 [reader]=GK0123456789abcdef00000003
)

garage_install() {
    [[ "$("$garage_program" --version 2>/dev/null)" != *":$garage_version "* ]] || return 0
    say "building garage $garage_version"
    # A target directory of its own: that of the project has other features of the same crates.
    CARGO_TARGET_DIR=$bed/garage/target cargo install garage --version "=$garage_version" --locked --no-default-features \
        --features bundled-libs,sqlite --root "$bed/garage" >&2
    rm -rf "$bed/garage/target"
}

garage_config() {
    local dir=$1 rpc=$2 s3=$3
    cat >"$dir/garage.toml" <<END
metadata_dir = "$dir/meta"
data_dir = "$dir/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:$rpc"
rpc_public_addr = "127.0.0.1:$rpc"
rpc_secret = "$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:$s3"
END
    chmod 600 "$dir/garage.toml"
}

garage_secret() { printf '%040d%s' 0 "${1#GK}"; }

garage_layout_and_keys() {
    local garage=("$garage_program" -c "$1/garage.toml") node name
    node=$("${garage[@]}" node id --quiet)
    "${garage[@]}" layout assign --zone a --capacity 10G "${node%%@*}"
    "${garage[@]}" layout apply --version 1
    for name in "${!garage_ids[@]}"; do
        "${garage[@]}" key import --yes -n "$name" "${garage_ids[$name]}" "$(garage_secret "${garage_ids[$name]}")"
    done
}

garage_start() {
    local dir=$1 rpc s3
    garage_install
    say 'starting Garage'
    mkdir -p "$dir"/{meta,data}
    rpc=$(free_port) s3=$(free_port)
    garage_config "$dir" "$rpc" "$s3"
    "$garage_program" -c "$dir/garage.toml" server >"$dir/log" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    if ! { wait_for 60 "$(cat "$dir/pid")" curl --silent --output /dev/null "http://127.0.0.1:$s3/" &&
        garage_layout_and_keys "$dir"; } >"$dir/start.log" 2>&1; then
        say "Garage did not start; the end of $dir/log:"
        tail -n 15 "$dir/log" "$dir/start.log" >&2
        return 1
    fi
    export CONSIGN_TEST_GARAGE_URL=http://127.0.0.1:$s3 CONSIGN_TEST_GARAGE_PROGRAM=$garage_program
    export CONSIGN_TEST_GARAGE_CONFIG=$dir/garage.toml
    local name
    for name in "${!garage_ids[@]}"; do
        export "CONSIGN_TEST_GARAGE_${name^^}=${garage_ids[$name]}:$(garage_secret "${garage_ids[$name]}")"
    done
}

garage_stop() { end_pid "$1/pid"; }
